"""The nursery: a process that has imported torch and the suite, and from which all workers are forked.

A fork of the nursery imports the target, plans the run, and is forked again for each worker. If the import starts
threads or a GPU driver, that process cannot be forked. Workers are then forked from the nursery itself, and each of
them imports the target. The same happens if the process with the target dies.
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

MANY = 40  # trials, some of which will need torch's compiler; it is imported once, before forking
NOT_COPIED = 75  # exit code of a process that cannot be forked, so that each worker must import the target


def plan_and_judge(selection: Selection, folder: Path, asked: int) -> None:
    """Write the plan to the folder, wait for a byte on the descriptor `asked`, and judge the requested trials.

    Files in the folder: `plan.json`, a `SmokeCheck`; `request.json`, written before the byte; the events of all trials.
    """
    set_interpreter(selection.lane, selection.device, gpu_at_hand())
    try:
        reload_worker.prepare()
    except Exception:  # noqa: BLE001  (any exception here is a failure of the suite)
        SmokeCheck(failure=traceback.format_exc()).write(folder)
        return
    number = processes.fork(lambda: _with_target(selection, folder, asked))
    code = processes.exit_code(os.waitpid(number, 0)[1])
    if code == 0:
        return
    requested = (folder / "request.json").exists()
    if code != NOT_COPIED and not requested:  # the process ended during the import
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
            importlib.import_module("torch._dynamo")  # a second's import for torch.compile, checkpointing and ranks
        pool.run()
    except Exception:  # noqa: BLE001
        Events(folder).write(error=traceback.format_exc(), where=selection.target)


def _can_be_copied() -> bool:
    """Whether this process can be forked: neither threads nor CUDA survive a fork."""
    import torch

    cuda: Any = torch.cuda  # untyped
    threads = Path("/proc/self/task")
    return not cuda.is_initialized() and threads.exists() and len(list(threads.iterdir())) == 1


def _end_as(code: int) -> None:
    """End this process with the exit code or signal of another one."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)
