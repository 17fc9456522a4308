"""Ranks: processes of one gloo group, forked for one case, that end within a time limit or are ended.

A fork has the target at once, whatever it is made of: four ranks start in a tenth of a second. They end with the
process that forked them, in whatever way that ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import multiprocessing
import os
import random
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conformance.judge import Inconclusive, Refused, Violation

PATIENCE = "LORASPEC_RANK_SECONDS"  # in the environment: seconds for all ranks of a case
SECONDS = 60.0  # where it is not set; a case takes about one
GRACE = 2.0  # seconds in which the others may end once one rank has failed
# Imported before the fork, not once by each rank: DistributedDataParallel needs the last.
LIBRARIES = (
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.distributed.checkpoint",
    "torch._dynamo",
)
Answer = dict[str, Any]


def prepare() -> None:
    """Import what ranks need, which takes seconds the first time."""
    for name in LIBRARIES:
        importlib.import_module(name)


def on_ranks(world: int, work: Callable[[int], Answer]) -> list[Answer]:
    """What `work(rank)` returns on each of `world` ranks, which it runs on at the same time.

    Args:
        work: returns a dict of plain tensors, numbers, texts and lists.
    Raises:
        Violation, Inconclusive, Refused: as the first rank raised it, which the message names.
        Violation: for a rank that ends without an answer, or does not end.
    """
    prepare()
    with tempfile.TemporaryDirectory(prefix="loraspec-", ignore_cleanup_errors=True) as folder:
        follow, life = os.pipe()
        context = multiprocessing.get_context("fork")
        arguments = [(rank, world, work, Path(folder), follow, life) for rank in range(world)]
        ranks = [context.Process(target=_work, args=given) for given in arguments]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: it needs none of them
                for process in ranks:
                    process.start()
            _follow(ranks, Path(folder))
            return _answers(ranks, Path(folder))
        finally:
            os.close(life)
            os.close(follow)
            for process in ranks:
                _end(process)


def _follow(ranks: list[Any], folder: Path) -> None:
    """Wait for the ranks: for all, or after a failure of one for a moment, or until the time is up."""
    limit = float(os.environ.get(PATIENCE, SECONDS))
    deadline = time.monotonic() + limit
    while running := [p for p in ranks if p.is_alive()]:
        connection.wait([p.sentinel for p in running], max(0.0, deadline - time.monotonic()))
        if any(not p.is_alive() and _answer(folder, rank).get("kind") != "right" for rank, p in enumerate(ranks)):
            deadline = min(deadline, time.monotonic() + GRACE)
            for process in running:
                process.join(max(0.0, deadline - time.monotonic()))
            return
        if time.monotonic() >= deadline:
            missing = [rank for rank, p in enumerate(ranks) if p.is_alive() and not _answer(folder, rank)]
            if missing:
                where = "".join(f"\n         rank {rank} is {_place(ranks[rank], folder, rank)}" for rank in missing)
                raise Violation(f"{_named(missing, len(ranks))} not ended within {limit:g} s{where}", is_slow=True)
            return


def _answers(ranks: list[Any], folder: Path) -> list[Answer]:
    """The answers of all ranks, or what the first that failed says; a rank that died explains all others."""
    answers = [_answer(folder, rank) for rank in range(len(ranks))]
    for rank, process in enumerate(ranks):
        if not answers[rank] and not process.is_alive():
            code = process.exitcode
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
            raise Violation(f"rank {rank} of {len(ranks)} ended {how} before it was done{_said(folder, rank)}")
    wrong = [(a["time"], rank) for rank, a in enumerate(answers) if a.get("kind") != "right" and a]
    if wrong:
        rank = min(wrong)[1]
        kind, text = answers[rank]["kind"], f"on rank {rank} of {len(ranks)}: {answers[rank]['value']}"
        error = {"violation": Violation, "refused": Refused, "inconclusive": Inconclusive}.get(kind, RuntimeError)(text)
        raise error from RuntimeError(answers[rank]["cause"]) if answers[rank].get("cause") else None
    return [answer["value"] for answer in answers]


def _answer(folder: Path, rank: int) -> Answer:
    """What a rank left; empty if nothing."""
    path = folder / f"answer-{rank}"
    answer: Answer = torch.load(path, weights_only=True) if path.exists() else {}
    return answer


def _said(folder: Path, rank: int) -> str:
    """The end of what it printed."""
    lines = _text(folder / f"log-{rank}").strip().splitlines()
    return "".join(f"\n         {line[:300]}" for line in lines[-3:])


def _text(path: Path) -> str:
    """What is in a file; nothing if the rank did not come to make it."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _named(ranks: list[int], world: int) -> str:
    if len(ranks) == world > 1:
        return f"all {world} ranks have"
    many = len(ranks) > 1
    return f"rank{'s' * many} {', '.join(map(str, ranks))} of {world} ha{'ve' if many else 's'}"


def _place(process: Any, folder: Path, rank: int) -> str:
    """Where a rank is that does not end, by the innermost frame of Python."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGUSR1)
    path, deadline = folder / f"stack-{rank}", time.monotonic() + GRACE
    while time.monotonic() < deadline:
        _, _, stack = _text(path).rpartition("Current thread")
        frame = re.search(r'^  File "(.*)", line .* in (.*)\n', stack, re.MULTILINE)
        if frame is not None:
            return f"in {frame[2]} ({os.path.basename(frame[1])})"
        time.sleep(0.05)
    return "where no signal reaches it"


def _end(process: Any) -> None:
    """End a rank with all that it started."""
    if process.pid is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # for one that has no group of its own yet
    process.join()
    process.close()


def _work(rank: int, world: int, work: Callable[[int], Answer], folder: Path, follow: int, life: int) -> None:
    """All that a rank does."""
    os.setsid()  # so that what it starts is ended with it
    os.close(life)
    threading.Thread(target=_end_with_parent, args=(follow,), daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.disable()  # a rank that is cut off may abort: its stack would be written where the parent's belongs
    log = (folder / f"log-{rank}").open("w", encoding="utf-8", buffering=1)
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    sys.stdout = sys.stderr = log
    with (folder / f"stack-{rank}").open("w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
        answer: Answer = {}
        try:
            warnings.simplefilter("ignore")
            torch.set_num_threads(1)
            _join(rank, world, folder)
            answer = {"kind": "right", "value": work(rank)}
        except Violation as outcome:
            answer = {"kind": "violation", "value": str(outcome), "cause": _cause(outcome)}
        except Refused as outcome:
            answer = {"kind": "refused", "value": str(outcome)}
        except Inconclusive as outcome:
            answer = {"kind": "inconclusive", "value": str(outcome)}
        except Exception:  # noqa: BLE001  (whatever it is, it is the suite's)
            answer = {"kind": "error", "value": traceback.format_exc()}
        _leave(answer, folder, rank)
        if answer["kind"] == "right" and world > 1:  # the others may still need this one
            with contextlib.suppress(Exception):
                torch.distributed.barrier()
        os._exit(0)  # threads and exit handlers are not waited for


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
    limit = timedelta(seconds=4 * float(os.environ.get(PATIENCE, SECONDS)))  # who started them is faster
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(rank)  # what a target draws on its own must not be the same by chance


def _leave(answer: Answer, folder: Path, rank: int) -> None:
    """Leave the answer whole, or not at all."""
    buffer = io.BytesIO()
    torch.save(answer | {"time": time.monotonic_ns()}, buffer)
    (folder / f"part-{rank}").write_bytes(buffer.getvalue())
    (folder / f"part-{rank}").replace(folder / f"answer-{rank}")


def _end_with_parent(follow: int) -> None:
    """Wait for the end of the process that forked this one, and end with it."""
    os.read(follow, 1)
    os.killpg(0, signal.SIGKILL)
