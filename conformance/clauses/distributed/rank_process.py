"""The process of one rank: it joins the group, does its work, answers, and ends with its parent."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import io
import os
import random
import select
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.target.fault import raised_by_target, said

PATIENCE = "LORASPEC_RANK_SECONDS"  # an environment variable: seconds for all ranks of a case
SECONDS = 60.0  # the default; a case takes about one second
IDLE = 20.0  # seconds after which ranks without new work end
Answer = dict[str, Any]
Work = Callable[[int], Answer]


def patience() -> float:
    """The number of seconds that all ranks have for a case."""
    return float(os.environ.get(PATIENCE, SECONDS))


def work_and_answer(
    rank: int, world: int, work: Work, read: Callable[[bytes], Work] | None, folder: Path, ends: tuple[Any, ...]
) -> None:
    """Run a rank from its fork to its end."""
    follow, called, tell, open_there = ends
    os.setsid()  # its own group, so that processes it starts end with it
    for number in open_there:
        os.close(number)
    gc.freeze()  # the collector would write to every page that is shared with the parent
    threading.Thread(target=_end_with_parent, args=(follow, folder), daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.disable()  # the stack of an aborted rank would go to the parent's log
    log = (folder / f"log-{rank}").open("w", encoding="utf-8", buffering=1)
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    sys.stdout = sys.stderr = log
    warnings.simplefilter("ignore")
    with (folder / f"stack-{rank}").open("w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
        _answer_all(rank, world, work, read, folder, called, tell)
        os._exit(0)  # without waiting for threads and exit handlers


def _answer_all(
    rank: int,
    world: int,
    work: Work,
    read: Callable[[bytes], Work] | None,
    folder: Path,
    called: int,
    tell: int,
) -> None:
    """Answer the first work and each further one, until one fails or none comes for a while."""
    number = 0
    while True:
        answer = _attempt(rank, world, work, folder, join=number == 0)
        _leave(answer, folder, f"{number}-{rank}")
        os.write(tell, b".")
        if answer["kind"] != "right":
            return
        with contextlib.suppress(Exception):
            if world > 1:  # other ranks may still need this one
                torch.distributed.barrier()
        number += 1
        if read is None:
            return
        if not select.select([called], [], [], IDLE)[0] or not os.read(called, 1):
            shutil.rmtree(folder, ignore_errors=True)  # the parent may be gone
            return
        work = read((folder / f"work-{number}").read_bytes())


def _attempt(rank: int, world: int, work: Work, folder: Path, *, join: bool) -> Answer:
    """The answer of a work, or the error that it raised."""
    try:
        if join:
            torch.set_num_threads(1)
            _join(rank, world, folder)
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(rank)  # numbers that a target draws must not agree between ranks by accident
        return {"kind": "right", "value": work(rank)}
    except Violation as outcome:
        return {"kind": "violation", "value": str(outcome), "cause": _cause(outcome)}
    except Refused as outcome:
        return {"kind": "refused", "value": str(outcome)}
    except Inconclusive as outcome:
        return {"kind": "inconclusive", "value": str(outcome)}
    except Exception as error:  # noqa: BLE001  (the parent finds out whose it is, unless the target's code raised it)
        if raised_by_target(error):
            return {"kind": "violation", "value": said(error), "cause": repr(error)}
        return {"kind": "error", "value": traceback.format_exc()}


def _cause(outcome: Violation) -> str:
    """The cause of a violation as text, or an empty string: the cause shows whether the target raised."""
    return repr(outcome.__cause__) if outcome.__cause__ else ""


def _join(rank: int, world: int, folder: Path) -> None:
    """Join a gloo group on the loopback interface; its ranks meet in a file."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if names:
        os.environ["GLOO_SOCKET_IFNAME"] = names[0]
    distributed: Any = torch.distributed
    store = distributed.FileStore(str(folder / "store"), world)
    limit = timedelta(seconds=4 * patience())  # the parent gives up earlier
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)


def _leave(answer: Answer, folder: Path, name: str) -> None:
    """Write the answer atomically."""
    buffer = io.BytesIO()
    torch.save(answer | {"time": time.monotonic_ns()}, buffer)
    (folder / f"part-{name}").write_bytes(buffer.getvalue())
    (folder / f"part-{name}").replace(folder / f"answer-{name}")


def _end_with_parent(follow: int, folder: Path) -> None:
    """Wait until the parent process ends, then end this one."""
    os.read(follow, 1)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
