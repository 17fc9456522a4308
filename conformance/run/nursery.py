"""The nursery: a process with torch and the suite imported, and its copy that imports the target, plans the run, and is
then copied for each worker.

Where the target cannot be copied, since its import started threads or a GPU's driver, the nursery itself is, and each
worker imports the target. So it is too where the copy with the target dies.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from conformance.isolation import processes
from conformance.run import plan, reload_worker
from conformance.run.selection import Selection, gpu_at_hand, set_interpreter
from conformance.run.smoke_check import SmokeCheck
from conformance.run.worker_pool import Pool
from conformance.run.worker_status import Events

MANY = 100  # trials, some of which will import what compiles: once before the copies are made
NOT_COPIED = 75  # exit code of a process whose target must be imported by each worker


def plan_and_judge(selection: Selection, folder: Path, asked: int) -> None:
    """Write the plan to the folder, wait until a byte comes on the descriptor `asked`, and judge what is requested.

    In the folder: `plan.json`, a `SmokeCheck`; `request.json`, which comes before the byte; the events of all trials.
    """
    set_interpreter(selection.lane, selection.device, gpu_at_hand())
    try:
        reload_worker.prepare()
    except Exception:  # noqa: BLE001  (whatever it is, it is the suite's)
        SmokeCheck(failure=traceback.format_exc()).write(folder)
        return
    number = processes.fork(lambda: _with_target(selection, folder, asked))
    code = processes.exit_code(os.waitpid(number, 0)[1])
    if code == 0:
        return
    requested = (folder / "request.json").exists()
    if code != NOT_COPIED and not requested:  # it ended in the import
        _end_as(code)
    if requested or os.read(asked, 1):
        _judge(selection, folder)


def _with_target(selection: Selection, folder: Path, asked: int) -> None:
    found = plan.checked(selection)
    found.write(folder)
    if found.plan is None:
        return
    if not _can_be_copied():
        sys.exit(NOT_COPIED)
    if os.read(asked, 1):
        _judge(selection, folder)


def _judge(selection: Selection, folder: Path) -> None:
    try:
        pool = Pool(selection, folder)
        if len(pool.request.keys) >= MANY:
            importlib.import_module("torch._dynamo")  # torch.compile, checkpointing and ranks import it, for a second
        pool.run()
    except Exception:  # noqa: BLE001
        Events(folder).write(error=traceback.format_exc(), where=selection.target)


def _can_be_copied() -> bool:
    """Whether a copy of this process can do all that it can: threads do not survive a fork, nor does CUDA."""
    import torch

    cuda: Any = torch.cuda  # untyped
    threads = Path("/proc/self/task")
    return not cuda.is_initialized() and threads.exists() and len(list(threads.iterdir())) == 1


def _end_as(code: int) -> None:
    """End as another process did."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)
