"""A run: a child process imports the target and plans the run; copies of that process judge the trials."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from conformance.errors import SuiteError, UsageError, matched
from conformance.isolation.memory_folder import in_memory
from conformance.isolation.processes import Child
from conformance.judgement.result import Result
from conformance.report.outcome import Outcome
from conformance.report.plan import Plan
from conformance.report.report import SuiteFailure
from conformance.report.trial_keys import Key
from conformance.run.selection import Selection
from conformance.run.smoke_check import NAME, SmokeCheck
from conformance.run.supervisor import Guard, Stopped, memory_for
from conformance.run.time_limits import busy
from conformance.run.worker_status import Events
from conformance.specification.groups import groups

TIMEOUTS = {"quick": 45.0, "default": 300.0, "nightly": 7200.0}  # seconds for one trial on an idle machine
IMPORT_TIMEOUT = 120.0
EVERY = 0.05  # seconds between two polls of a run
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
Watcher = Callable[[Outcome, int], None]


class Run:
    """A run of one selection, as a context manager. Entering it plans the run; leaving it ends all of its processes.

    Attributes:
        plan: the plan, available once the context is entered.

    Raises:
        UsageError: if the target does not import, binds wrongly, or claims nothing that was chosen.
        SuiteError: if the suite fails on its own.
    """

    def __init__(self, selection: Selection, import_timeout: float = IMPORT_TIMEOUT) -> None:
        check_names(selection)
        self.selection, self.import_timeout = selection, import_timeout
        self._scratch = tempfile.TemporaryDirectory(prefix="loraspec-", ignore_cleanup_errors=True)
        self._folder = Path(self._scratch.name)
        # on the same file system as the clauses' folders, since a target may rename a temporary file into them
        self._files = tempfile.TemporaryDirectory(prefix="loraspec-", dir=in_memory(), ignore_cleanup_errors=True)
        self.plan: Plan

    def __enter__(self) -> Self:
        asked, self._asks = os.pipe()
        self._child = Child(lambda: self._nursery(asked))
        os.close(asked)
        try:
            self.plan = self._planned()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._asks)
        self._child.kill()
        self._child.wait()
        self._scratch.cleanup()
        self._files.cleanup()

    def _nursery(self, asked: int) -> None:
        os.close(self._asks)  # this copy would keep the pipe open after the parent ends
        os.environ.update(ONE_THREAD)  # before torch is imported: a process with threads cannot be copied
        from conformance.run import nursery

        nursery.plan_and_judge(self.selection, self._folder, asked)

    def _planned(self) -> Plan:
        target, path = f"target {self.selection.target!r}", self._folder / NAME
        deadline = time.monotonic() + self.import_timeout
        while (status := self._child.poll()) is None and not path.exists():
            if time.monotonic() > deadline:
                self._child.kill()
                printed = self._child.printed.lines(8)
                raise UsageError(f"{target} does not import within {self.import_timeout:g} s{printed}")
            time.sleep(EVERY / 5)
        if not path.exists():
            printed = self._child.printed.lines(8)
            raise UsageError(f"importing {target} ended the process, exit code {status}{printed}")
        found = SmokeCheck.read(self._folder)
        if found.plan is None:
            raise UsageError(found.error) if found.error is not None else SuiteError(found.failure)
        return found.plan

    def judge(
        self,
        plan: Plan,
        *,
        workers: int | None = None,
        timeout: float | None = None,
        memory: float | None = None,
        watcher: Watcher = lambda outcome, planned: None,  # noqa: ARG005
        known_before: Outcome | None = None,
    ) -> Outcome:
        """Run the trials of a plan, or of a part of it, and return the outcome of all trials.

        Trials with a known result are skipped. A trial that ends its process, or exceeds its time or memory, is
        recorded as crashed, and the run continues.

        Args:
            workers: number of processes; 0 means 1.   timeout: the most seconds for one trial.
            memory: GiB for one process; by default a share of the available memory.
            known_before: the outcome of earlier runs.

        Raises:
            UsageError: if the target imported once but does not import in the processes that run trials.
            SuiteError: if the process that starts the workers ends before every trial is judged.
        """
        from conformance.run.worker_pool import Request

        wanted = set(plan.keys)
        outcome = known_before or Outcome()
        left = [key for key in plan.keys if key not in outcome.results]
        if left and not outcome.errors:
            count = max(1, processes(len(left), self.selection.device) if workers is None else workers)
            limit = TIMEOUTS[self.selection.profile] * busy() if timeout is None else timeout
            most = memory_for(count) if memory is None else int(memory * 2**30)
            _write(self._folder, outcome)
            Request(left, count, limit, self._files.name).write(self._folder)
            os.write(self._asks, b".")
            guard = Guard(self._folder, limit, self.import_timeout, most)
            outcome = self._followed(guard, wanted, watcher)
        watcher(outcome, len(wanted))
        return outcome

    def _followed(self, guard: Guard, wanted: set[Key], watcher: Watcher) -> Outcome:
        """Poll the run until it has ended."""
        following = Following(self._folder)
        where = f"target {self.selection.target!r} imports once but not in the processes that run trials"
        while True:
            status = self._child.wait(EVERY)
            outcome = following.look()
            watcher(outcome, len(wanted))
            if status is not None:
                break
            try:
                guard.look(self._child, finished=not wanted - set(outcome.results))
            except Stopped as error:
                guard.stop(self._child)
                raise UsageError(f"{where}: {error}{self._child.printed.lines(8)}") from None
        if wanted - set(outcome.results) and not outcome.errors:
            printed = self._child.printed.lines(60)
            raise SuiteError(f"the process that starts workers ended with status {status}, with trials left{printed}")
        return outcome


def check_names(selection: Selection) -> None:
    """Check, without importing the target, that clauses and exclusions name something, and that its module exists.

    Raises:
        UsageError: naming the unknown clause or module.
    """
    from conformance.specification import spec_page

    clauses = spec_page.read()
    spec_page.check_written(selection.clauses, clauses)
    matched(selection.clauses, clauses, "clause")
    matched(selection.excluded, [*clauses, *groups()], "clause or group")
    top = selection.target.partition(":")[0].partition(".")[0]
    if top.isidentifier() and importlib.util.find_spec(top) is None:
        raise UsageError(f"target {selection.target!r} does not import: no module named {top!r}")


def processes(trials: int, device: str) -> int:
    """The number of worker processes for a number of trials, limited by the processors and by the cost of a start."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available, 8 if device == "cpu" else 4, (trials + 3) // 4))


def _write(scratch: Path, outcome: Outcome) -> None:
    events = Events(scratch)
    for key, result in outcome.results.items():
        events.write(result=dataclasses.asdict(result), script=outcome.scripts.get(key))


class Following:
    """The outcome of a run, followed through the events in its folder. Each event is read only once."""

    def __init__(self, scratch: Path) -> None:
        self._events, self._outcome = Events(scratch), Outcome()

    def look(self) -> Outcome:
        """The outcome so far. Every call returns the same object."""
        for event in self._events.new():
            match event:
                case {"result": dict(result), "script": script}:
                    self._outcome.add(Result(**result), script if isinstance(script, str) else None)
                case {"error": str(text), "where": str(where)}:
                    self._outcome.errors.append(SuiteFailure(where, text))
        return self._outcome


def record_death(scratch: Path, limit: float) -> None:
    """Record a crash of the trial that a process started and did not finish, if that process judged one at a time."""
    from conformance.run.worker_status import crashed

    events = Events(scratch)
    finished = set(Following(scratch).look().results)
    started = [event["start"] for event in events.new() if "start" in event]
    open_trials = [Key(*key) for key in started]
    open_trials = [key for key in open_trials if key not in finished]
    if open_trials:
        result, _ = crashed(scratch, "main", open_trials[-1], limit)
        events.write(result=dataclasses.asdict(result), script=None)
