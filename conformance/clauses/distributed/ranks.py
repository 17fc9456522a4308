"""Ranks: forked processes of one gloo group that answer within a time limit or are killed.

A forked process has the target at once, even one that cannot be pickled: four ranks start in a tenth of a second. Ranks
end with the process that forked them, however it ends. `kept_ranks` uses them for several cases.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from conformance.cases.reproducer_marks import runs_on_ranks
from conformance.clauses.distributed.rank_process import Answer, Work, patience, work_and_answer
from conformance.isolation.memory_folder import in_memory
from conformance.judgement.outcomes import Inconclusive, Refused, Violation

GRACE = 0.5  # seconds that the others may still take after one rank has failed, to find the first that did
PLACE = 2.0  # seconds in which a hanging rank may report where it is
# Imported once before the fork, not by each rank; DistributedDataParallel needs the last one.
LIBRARIES = (
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.distributed.checkpoint",
    "torch._dynamo",
)
# Its first backward pass decides for good whether autograd gives a process threads; with them its forks cannot run any.
# Under torch 2.15 it does if that pass is one of a compiled function.
torch.autograd.backward([torch.ones((), requires_grad=True)])
KEEPERS: list[Callable[[int, Work], list[Answer]]] = []  # if set, answers in place of new ranks, see `kept_ranks`


def prepare() -> None:
    """Import the libraries that ranks need, which takes seconds the first time."""
    for name in LIBRARIES:
        importlib.import_module(name)


@runs_on_ranks
def on_ranks(world: int, work: Work, *, fresh: bool = False) -> list[Answer]:
    """The results of `work(rank)` on each of `world` ranks, which run at the same time.

    Args:
        work: returns a dict of plain tensors, numbers, texts and lists.
        fresh: whether new ranks do it, forked from this process as it is now.
    Raises:
        Violation, Inconclusive, Refused: the error of the rank that failed first, which the message names.
        Violation: if a rank ends without an answer, or does not end.
    """
    prepare()
    for keeper in () if fresh else KEEPERS:
        return keeper(world, work)
    ranks = Ranks(world, work)
    try:
        return ranks.answers()
    finally:
        ranks.end()


class Ranks:
    """Processes of one group, forked with a first work, which then do the works given to `ask`.

    Attributes:
        folder: holds their answers, their output and their stacks.
        life: an end of a pipe; when this process ends the pipe closes, and the ranks end.
        done: the number of works they have answered.
    """

    def __init__(self, world: int, work: Work, read: Callable[[bytes], Work] | None = None, others: Any = ()) -> None:
        """Fork the ranks.

        Args:
            read: turns the bytes given to `ask` into a work.
            others: existing `Ranks` of this process, whose pipes the new ranks close.
        """
        self.folder, self.done = Path(tempfile.mkdtemp(prefix="loraspec-", dir=in_memory())), 0
        self._follow, self.life = os.pipe()
        self._called, self._call = os.pipe()  # a byte for each rank and work
        self._news, tell = os.pipe()  # a byte for each answer
        open_here = (self.life, self._call, *(ranks.life for ranks in others))
        context = multiprocessing.get_context("fork")
        ends = (self._follow, self._called, tell, open_here)
        given = [(rank, world, work, read, self.folder, ends) for rank in range(world)]
        self.processes: list[Any] = [context.Process(target=work_and_answer, args=args, daemon=True) for args in given]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # about threads, which ranks do not need
                for process in self.processes:
                    process.start()
        except BaseException:
            self.end()
            raise
        finally:
            os.close(tell)

    def alive(self) -> bool:
        """Whether every rank still runs."""
        return all(process.is_alive() for process in self.processes)

    def ask(self, work: bytes) -> list[Answer]:
        """Give the ranks another work, and return their answers."""
        (self.folder / f"work-{self.done}").write_bytes(work)
        os.write(self._call, b"." * len(self.processes))
        return self.answers()

    def answers(self) -> list[Answer]:
        """The answers of all ranks; a rank that died is reported before other errors, since it causes them.

        Raises:
            Violation, Inconclusive, Refused: as `on_ranks` does; the ranks must not be used afterwards.
        """
        self._wait()
        ranks, world = self.processes, len(self.processes)
        answers = [self._answer(rank) for rank in range(world)]
        for rank, process in enumerate(ranks):
            if not answers[rank] and not process.is_alive():
                code = process.exitcode
                how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
                raise Violation(f"rank {rank} of {world} ended {how} before it was done{_said(self.folder, rank)}")
        wrong = [(a["time"], rank) for rank, a in enumerate(answers) if a.get("kind") != "right" and a]
        if wrong:
            rank = min(wrong)[1]
            kind, text = answers[rank]["kind"], f"on rank {rank} of {world}: {answers[rank]['value']}"
            kinds = {"violation": Violation, "refused": Refused, "inconclusive": Inconclusive}
            error = kinds.get(kind, RuntimeError)(text)
            raise error from RuntimeError(answers[rank]["cause"]) if answers[rank].get("cause") else None
        self.done += 1
        return [answer["value"] for answer in answers]

    def end(self) -> None:
        """End the ranks and all processes that they started."""
        for process in self.processes:
            _end(process)
        for number in (self.life, self._follow, self._called, self._call, self._news):
            os.close(number)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self) -> None:
        """Wait for all answers, for a moment after the first failure, or until the time is up."""
        limit, ranks = patience(), self.processes
        deadline, failed = time.monotonic() + limit, False
        while waiting := [rank for rank, p in enumerate(ranks) if p.is_alive() and not self._path(rank).exists()]:
            ready = connection.wait(
                [self._news, *(ranks[rank].sentinel for rank in waiting)], max(0.0, deadline - time.monotonic())
            )
            if self._news in ready:
                os.read(self._news, len(ranks))
            lost = [p for rank, p in enumerate(ranks) if not p.is_alive() and not self._path(rank).exists()]
            if not failed and (
                lost or any(a.get("kind", "right") != "right" for a in map(self._answer, range(len(ranks))))
            ):
                failed, deadline = True, min(deadline, time.monotonic() + GRACE)
            if time.monotonic() >= deadline and failed:
                return
            if time.monotonic() >= deadline:
                missing = [rank for rank in waiting if ranks[rank].is_alive() and not self._path(rank).exists()]
                if missing:
                    places = [f"rank {rank} is {_place(ranks[rank], self.folder, rank)}" for rank in missing]
                    where = "".join(f"\n         {place}" for place in places)
                    raise Violation(f"{_named(missing, len(ranks))} not ended within {limit:g} s{where}", is_slow=True)

    def _path(self, rank: int) -> Path:
        return self.folder / f"answer-{self.done}-{rank}"

    def _answer(self, rank: int) -> Answer:
        """The answer of a rank; empty if there is none."""
        path = self._path(rank)
        answer: Answer = torch.load(path, weights_only=True) if path.exists() else {}
        return answer


def _said(folder: Path, rank: int) -> str:
    """The last lines of a rank's output."""
    lines = _text(folder / f"log-{rank}").strip().splitlines()
    return "".join(f"\n         {line[:300]}" for line in lines[-3:])


def _text(path: Path) -> str:
    """The text of a file; empty if the rank has not made it."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _named(ranks: list[int], world: int) -> str:
    if len(ranks) == world > 1:
        return f"all {world} ranks have"
    many = len(ranks) > 1
    return f"rank{'s' * many} {', '.join(map(str, ranks))} of {world} ha{'ve' if many else 's'}"


def _place(process: Any, folder: Path, rank: int) -> str:
    """The innermost Python frame of a rank that does not end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGUSR1)
    path, deadline = folder / f"stack-{rank}", time.monotonic() + PLACE
    while time.monotonic() < deadline:
        _, _, stack = _text(path).rpartition("Current thread")
        frame = re.search(r'^  File "(.*)", line .* in (.*)\n', stack, re.MULTILINE)
        if frame is not None:
            return f"in {frame[2]} ({os.path.basename(frame[1])})"
        time.sleep(0.05)
    return "where no signal reaches it"


def _end(process: Any) -> None:
    """End a rank and all processes that it started."""
    if process.pid is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # the rank may not have its own group yet
    process.join()
    process.close()
