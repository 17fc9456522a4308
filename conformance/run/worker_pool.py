"""Workers: forks of a process that has imported the suite and usually the target. Each judges one trial at a time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.isolation import processes
from conformance.judgement.result import CRASHED, FAIL, Result
from conformance.report.trial_keys import Key
from conformance.run import expected_seconds
from conformance.run.selection import Selection
from conformance.run.smoke_check import SmokeCheck
from conformance.run.time_limits import Limits
from conformance.run.worker_status import Events, Watch, crashed, judged, last_word

LEAVE = 5.0  # seconds that the workers have to end after the last trial
EVERY = 0.1  # seconds between two checks for dead workers
GUARDED = 60.0  # seconds to wait for the guard, which polls several times a second, to end the run
FRUITLESS = 5  # the run fails after this many workers in a row ended without a trial


@dataclass(frozen=True)
class Request:
    """The trials to judge, the number of workers, the time limit of a trial, and a folder for temporary files."""

    keys: list[Key]
    workers: int
    limit: float
    files: str

    @classmethod
    def read(cls, folder: Path) -> Request:
        """Read the request from a folder."""
        found = json.loads((folder / "request.json").read_text(encoding="utf-8"))
        keys = [Key(*key) for key in found["keys"]]
        return cls(keys, found["workers"], found["limit"], found["files"])

    def write(self, folder: Path) -> None:
        """Write the request to a folder, atomically."""
        temporary = folder / "request.part"
        temporary.write_text(json.dumps(vars(self)), encoding="utf-8")
        temporary.replace(folder / "request.json")


@dataclass
class Worker:
    """The pool's record of a worker.

    Attributes:
        inbox: the descriptor to which the pool writes trials.
        outbox: the descriptor from which the pool reads a byte for each finished trial.
        group: the group whose trials the worker takes.   trial: the trial that it judges; None while it waits.
        limit: seconds for the trial.   since: the start of the trial.
    """

    name: str
    pid: int
    inbox: int
    outbox: int
    group: str = ""
    trial: Key | None = None
    limit: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.inbox)
        os.close(self.outbox)


class Trials:
    """The remaining trials by group. A worker keeps to one group, whose trials share keys, servers and models."""

    def __init__(self, keys: list[Key], group_of: Callable[[Key], str], seconds: Callable[[Key], float]) -> None:
        self._seconds = seconds
        self._left: dict[str, deque[Key]] = {}
        for key in sorted(keys, key=lambda key: -seconds(key)):  # so that no long trial runs alone at the end
            self._left.setdefault(group_of(key), deque()).append(key)
        self._sums = {group: sum(map(seconds, left)) for group, left in self._left.items()}

    def __bool__(self) -> bool:
        return any(self._left.values())

    def take(self, of: str, taken: set[str]) -> tuple[str, Key]:
        """The next trial and its group: the group `of`, else the largest free group, else the largest group."""
        group = of
        if not self._left.get(of):
            open_groups = [name for name, left in self._left.items() if left]
            free = [name for name in open_groups if name not in taken]
            group = max(free or open_groups, key=lambda name: self._sums[name])
        key = self._left[group].popleft()
        self._sums[group] -= self._seconds(key)
        return group, key

    def give_back(self, group: str, key: Key) -> None:
        """Take back a trial that its worker never began; it is the next of its group."""
        self._left[group].appendleft(key)
        self._sums[group] += self._seconds(key)


class Pool:
    """Forks workers that judge the requested trials. Each result is an event in the folder."""

    def __init__(self, selection: Selection, folder: Path) -> None:
        self.selection, self.folder, self.request = selection, folder, Request.read(folder)
        self.events = Events(folder)
        plan = SmokeCheck.read(folder).plan
        assert plan is not None
        seconds = expected_seconds.of(plan)
        groups = {clause.id: clause.group for clause in plan.clauses}
        self.limits = Limits(self.request.limit, self.request.workers, seconds)
        done = judged(folder)
        left = [key for key in self.request.keys if key not in done]
        self.trials = Trials(left, lambda key: groups[key.clause], seconds)
        self.workers: list[Worker] = []
        self._named = self._fruitless = 0

    def run(self) -> None:
        """Judge all trials. Returns once each of them has its event."""
        while self.trials or any(worker.trial for worker in self.workers):
            self._fill()
            self._hear()
            self._bury()
        self._dismiss()

    def _dismiss(self) -> None:
        """Tell every worker to end, and kill the workers that do not, for example because of the target's threads."""
        for worker in self.workers:
            with contextlib.suppress(BrokenPipeError):
                os.write(worker.inbox, b"\n")
        deadline = time.monotonic() + LEAVE
        while self.workers:
            for worker in list(self.workers):
                if time.monotonic() > deadline:
                    os.kill(worker.pid, signal.SIGKILL)
                if os.waitpid(worker.pid, os.WNOHANG)[0]:
                    self.workers.remove(worker)
                    worker.close()
            time.sleep(0.005)

    def _fill(self) -> None:
        """Give a trial to each waiting worker, and fork further workers up to the requested number."""
        for worker in self.workers:
            if worker.trial is None:
                self._give(worker)
        while self.trials and len(self.workers) < max(1, self.request.workers):
            self.workers.append(self._forked())
            self._give(self.workers[-1])

    def _give(self, worker: Worker) -> None:
        while self.trials:
            taken = {other.group for other in self.workers if other is not worker}
            worker.group, key = self.trials.take(worker.group, taken)
            reason = self.limits.hopeless(key)
            if reason is None:
                limit = self.limits.seconds(key)
                try:
                    os.write(worker.inbox, json.dumps([*key, limit]).encode() + b"\n")
                except BrokenPipeError:  # the guard may end a worker that has just finished; `_bury` removes it
                    self.trials.give_back(worker.group, key)
                    return
                worker.trial, worker.limit, worker.since = key, limit, time.monotonic()
                return
            self._add(Result(*key, status=CRASHED, message=reason))

    def _forked(self) -> Worker:
        inbox, gives = os.pipe()
        hears, outbox = os.pipe()
        self._named += 1
        name = f"worker-{self._named}"
        foreign = [gives, hears, *(fd for worker in self.workers for fd in (worker.inbox, worker.outbox))]

        def work() -> None:
            for descriptor in foreign:
                os.close(descriptor)
            _keep_files_in(Path(self.request.files) / name)
            judge_as_told(self.selection, self.folder, name, inbox, outbox)

        pid = processes.fork(work)
        os.close(inbox)
        os.close(outbox)
        return Worker(name, pid, gives, hears)

    def _hear(self) -> None:
        """Wait briefly for workers that have finished their trials."""
        ready, _, _ = select.select([worker.outbox for worker in self.workers], [], [], EVERY)
        for worker in self.workers:
            if worker.outbox in ready and worker.trial and os.read(worker.outbox, 1):
                self.limits.finished(worker.trial, time.monotonic() - worker.since)
                worker.trial, self._fruitless = None, 0

    def _bury(self) -> None:
        """Remove dead workers, and record the crash of their trials."""
        for worker in list(self.workers):
            number, status = os.waitpid(worker.pid, os.WNOHANG)
            if not number:
                continue
            self.workers.remove(worker)
            worker.close()
            self._fruitless += 1
            if last_word(self.folder, worker.name) in ("import", "refused"):
                time.sleep(GUARDED)  # the trial is not at fault; the guard sees the failed import and ends the run
            if worker.trial is not None:
                self._died(worker)
            elif self._fruitless >= FRUITLESS:
                code = processes.exit_code(status)
                raise RuntimeError(f"{FRUITLESS} workers in a row ended on their own, the last with exit code {code}")

    def _died(self, worker: Worker) -> None:
        assert worker.trial is not None
        result, late = crashed(self.folder, worker.name, worker.trial, worker.limit)
        if late and result.message:
            first, _, rest = result.message.partition("\n")
            result.message = "\n".join(filter(None, (first + self.limits.said(worker.limit), rest)))
        self.limits.died(worker.trial, time.monotonic() - worker.since if late else None)
        self._add(result)

    def _add(self, result: Result) -> None:
        self.events.write(result=vars(result), script=None)


def judge_as_told(selection: Selection, folder: Path, name: str, inbox: int, outbox: int) -> None:
    """The main function of a worker: read trials, one per line, judge each, write its event, and send a byte."""
    from conformance.errors import TargetError
    from conformance.run.trial import loaded, trials
    from conformance.specification.clause import REGISTRY
    from conformance.target.fault import looking_at

    watch, events = Watch(folder, name, 0.0), Events(folder)
    try:
        with watch.importing():
            target = loaded(selection.target, selection.device)
    except TargetError as error:
        watch.doing("refused", str(error))
        time.sleep(GUARDED)
        return
    known: dict[Key, Any] = {}
    with os.fdopen(inbox, encoding="utf-8") as lines:
        for line in lines:
            if not line.strip():
                return
            *words, watch.timeout = json.loads(line)
            key = Key(*words)
            try:
                if key not in known:
                    with looking_at(selection.target):
                        offered = trials(REGISTRY[key.clause], target, selection, watch, reproduces=True)
                    known = {trial.key: trial for trial in offered}
                result = known[key].examine()
                events.write(result=vars(result), script=known[key].reproducer)
            except TargetError as error:
                events.write(result=vars(Result(*key, status=FAIL, message=str(error))), script=None)
            except Exception:  # noqa: BLE001  (any exception here is a failure of the suite)
                events.write(error=traceback.format_exc(), where=" ".join(key))
            os.write(outbox, b".")


def _keep_files_in(folder: Path) -> None:
    """Direct temporary files to a folder that is removed with the run, including files that the target leaves."""
    folder.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
