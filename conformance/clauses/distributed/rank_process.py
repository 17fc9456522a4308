"""What one rank does in its process: join the group, do its work, answer, and end with its parent."""

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

PATIENCE = "LORASPEC_RANK_SECONDS"  # in the environment: seconds for all ranks of a case
SECONDS = 60.0  # where it is not set; a case takes about one
IDLE = 20.0  # seconds after which ranks that are given nothing more to do end
Answer = dict[str, Any]
Work = Callable[[int], Answer]


def patience() -> float:
    """Seconds that all ranks have for a case."""
    return float(os.environ.get(PATIENCE, SECONDS))


def work_and_answer(
    rank: int, world: int, work: Work, read: Callable[[bytes], Work] | None, folder: Path, ends: tuple[Any, ...]
) -> None:
    """All that a rank does."""
    follow, called, tell, open_there = ends
    os.setsid()  # so that what it starts is ended with it
    for number in open_there:
        os.close(number)
    gc.freeze()  # the collector would write to every page that it shares with the process it was forked from
    threading.Thread(target=_end_with_parent, args=(follow, folder), daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.disable()  # a rank that is cut off may abort: its stack would be written where the parent's belongs
    log = (folder / f"log-{rank}").open("w", encoding="utf-8", buffering=1)
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    sys.stdout = sys.stderr = log
    warnings.simplefilter("ignore")
    with (folder / f"stack-{rank}").open("w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
        _answer_all(rank, world, work, read, folder, called, tell)
        os._exit(0)  # threads and exit handlers are not waited for


def _answer_all(
    rank: int,
    world: int,
    work: Work,
    read: Callable[[bytes], Work] | None,
    folder: Path,
    called: int,
    tell: int,
) -> None:
    """Answer the first work, and then each that comes, until one goes wrong or none comes for a while."""
    number = 0
    while True:
        answer = _attempt(rank, world, work, folder, join=number == 0)
        _leave(answer, folder, f"{number}-{rank}")
        os.write(tell, b".")
        if answer["kind"] != "right":
            return
        with contextlib.suppress(Exception):
            if world > 1:  # the others may still need this one
                torch.distributed.barrier()
        number += 1
        if read is None:
            return
        if not select.select([called], [], [], IDLE)[0] or not os.read(called, 1):
            shutil.rmtree(folder, ignore_errors=True)  # nobody may be left to do it
            return
        work = read((folder / f"work-{number}").read_bytes())


def _attempt(rank: int, world: int, work: Work, folder: Path, *, join: bool) -> Answer:
    """The work's answer, or what it raised."""
    try:
        if join:
            torch.set_num_threads(1)
            _join(rank, world, folder)
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(rank)  # what a target draws on its own must not be the same by chance
        return {"kind": "right", "value": work(rank)}
    except Violation as outcome:
        return {"kind": "violation", "value": str(outcome), "cause": _cause(outcome)}
    except Refused as outcome:
        return {"kind": "refused", "value": str(outcome)}
    except Inconclusive as outcome:
        return {"kind": "inconclusive", "value": str(outcome)}
    except Exception:  # noqa: BLE001  (whatever it is, it is the suite's)
        return {"kind": "error", "value": traceback.format_exc()}


def _cause(outcome: Violation) -> str:
    """What it was raised for, if anything: a target that raises has refused, see `Examination.probe`."""
    return repr(outcome.__cause__) if outcome.__cause__ else ""


def _join(rank: int, world: int, folder: Path) -> None:
    """Become a rank of a gloo group on the loopback interface; they meet in a file."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if names:
        os.environ["GLOO_SOCKET_IFNAME"] = names[0]
    distributed: Any = torch.distributed
    store = distributed.FileStore(str(folder / "store"), world)
    limit = timedelta(seconds=4 * patience())  # who started them is faster
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)


def _leave(answer: Answer, folder: Path, name: str) -> None:
    """Leave the answer whole, or not at all."""
    buffer = io.BytesIO()
    torch.save(answer | {"time": time.monotonic_ns()}, buffer)
    (folder / f"part-{name}").write_bytes(buffer.getvalue())
    (folder / f"part-{name}").replace(folder / f"answer-{name}")


def _end_with_parent(follow: int, folder: Path) -> None:
    """Wait for the end of the process that forked this one, and end with it."""
    os.read(follow, 1)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
