"""A run: smoke check in one process, trials in pytest in others, until every planned trial has its result."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformance.guard import Guard, Stopped, Tail, memory_for
from conformance.report import Outcome
from conformance.result import Result
from conformance.selection import Selection, UsageError
from conformance.shards import keys
from conformance.watch import Events, crashed

HERE = Path(__file__).resolve().parent
TIMEOUTS = {"quick": 120.0, "default": 600.0, "nightly": 7200.0}  # seconds for one trial
IMPORT_TIMEOUT = 120.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
Watcher = Callable[[Outcome, int], None]


class SuiteError(Exception):
    """The suite itself failed; the message is its traceback or log."""


def smoke(selection: Selection, timeout: float = IMPORT_TIMEOUT) -> dict[str, Any]:
    """Import the target in a process of its own and plan the run.

    Raises:
        UsageError: if the target does not import, binds wrongly, or claims nothing that was chosen.
        SuiteError: if the suite fails on its own.
    """
    with tempfile.TemporaryDirectory(prefix="loraspec-") as folder:
        out = Path(folder) / "plan.json"
        request = json.dumps(dataclasses.asdict(selection))
        command = [sys.executable, "-m", "conformance.smoke", request, str(out)]
        process, printed = _started(command, _environment())
        target = f"target {selection.target!r}"
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise UsageError(f"{target} does not import within {timeout:g} s{printed.lines(8)}") from None
        finally:
            process.kill()
            process.wait()
        if not out.exists():
            raise UsageError(f"importing {target} ended the process, exit code {status}{printed.lines(8)}")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if "error" in found:
        raise UsageError(found["error"])
    if "failure" in found:
        raise SuiteError(found["failure"])
    return found


def execute(
    selection: Selection,
    plan: dict[str, Any],
    *,
    workers: int | None = None,
    timeout: float | None = None,
    memory: float | None = None,
    watcher: Watcher = lambda outcome, planned: None,  # noqa: ARG005
    known: Outcome | None = None,
) -> Outcome:
    """Run every planned trial that is not known yet; return what came of all of them.

    A trial that ends its process, or goes beyond its time or memory, is recorded as crashed, and the others go on.

    Args:
        timeout: seconds for one trial.   memory: GiB for one process; a share of what is available by default.

    Raises:
        UsageError: if the target, imported once, does not import in the processes that run trials.
        SuiteError: if pytest fails without saying which trial did.
    """
    wanted = set(keys(plan))
    outcome = known or Outcome()
    left = len(wanted - set(outcome.results))
    count = processes(left, selection.device) if workers is None else workers
    limit = TIMEOUTS[selection.profile] if timeout is None else timeout
    most = memory_for(count) if memory is None else int(memory * 2**30)
    with tempfile.TemporaryDirectory(prefix="loraspec-") as folder:
        scratch = Path(folder)
        _write(scratch, outcome)
        guard, following = Guard(scratch, limit, IMPORT_TIMEOUT, most), Following(scratch)

        def look(process: subprocess.Popen[bytes]) -> None:
            seen = following.look()
            watcher(seen, len(wanted))
            guard.look(process, finished=not wanted - set(seen.results))

        while not outcome.errors and wanted - set(outcome.results):
            before = len(outcome.results)
            (scratch / "wanted.json").write_text(json.dumps(sorted(wanted - set(outcome.results))))
            status, printed = _pytest(selection, plan, guard, count, look)
            outcome = following.look()
            if count == 0 and wanted - set(outcome.results) and not outcome.errors:
                record_death(scratch, limit)
                outcome = following.look()
            if len(outcome.results) == before and not outcome.errors:
                raise SuiteError(f"pytest ended with status {status} and no result{printed}")
    watcher(outcome, len(wanted))
    return outcome


def processes(trials: int, device: str) -> int:
    """Worker processes for so many trials: not more than processors, nor than is worth their start."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available, 8 if device == "cpu" else 4, math.ceil(trials / 16)))


def _pytest(
    selection: Selection,
    plan: dict[str, Any],
    guard: Guard,
    workers: int,
    look: Callable[[subprocess.Popen[bytes]], None],
) -> tuple[int, str]:
    """Run one session under the guard; its exit status, and the end of what it printed."""
    # a session of our own making: no plugin, configuration or conftest of the user's takes part in it
    groups = [group for group, about in plan["groups"].items() if about["claimed"]]
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={HERE.parent}", "--noconftest"]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider", "-p", "conformance.plugin"]
    # what the target prints, warns or logs is passed on, not collected
    command += ["-s", "-p", "no:warnings", "-p", "no:logging"]
    command += ["-p", "xdist.plugin", "-n", str(workers), "--dist=worksteal", "--max-worker-restart=1000000"]
    command += [f"--loraspec-scratch={guard.folder}", f"--loraspec-timeout={guard.limit}", *selection.arguments()]
    command += ["--pyargs", *(f"conformance.test_{group}" for group in groups)]
    environment = {k: v for k, v in _environment().items() if not k.startswith(("PYTEST_", "TRITON_INTERPRET"))}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if plan["interpreting"]:
        environment["TRITON_INTERPRET"] = "1"
    process, printed = _started(command, environment)
    try:
        while process.poll() is None:
            time.sleep(0.2)
            look(process)
    except Stopped as error:
        guard.stop(process)
        where = f"target {selection.target!r} imports once but not in the processes that run trials"
        raise UsageError(f"{where}: {error}{printed.lines(8)}") from None
    except BaseException:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            guard.stop(process)
        raise
    return process.returncode, printed.lines(60)


def _started(command: list[str], environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], Tail]:
    """A process without input, and the end of what it prints."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    assert process.stdout is not None
    return process, Tail(process.stdout)


def _environment() -> dict[str, str]:
    return {**os.environ, **ONE_THREAD}


def _write(scratch: Path, outcome: Outcome) -> None:
    events = Events(scratch)
    for key, result in outcome.results.items():
        events.write(result=dataclasses.asdict(result), script=outcome.scripts.get(key))
    for where, text in outcome.errors:
        events.write(error=text, where=where)


class Following:
    """What the events in a folder say came of the trials: each event is read once, however often one looks."""

    def __init__(self, scratch: Path) -> None:
        self._events, self._outcome = Events(scratch), Outcome()

    def look(self) -> Outcome:
        """The outcome so far; the same object each time."""
        for event in self._events.new():
            match event:
                case {"result": dict(result), "script": script}:
                    self._outcome.add(Result(**result), script if isinstance(script, str) else None)
                case {"error": str(text), "where": str(where)}:
                    self._outcome.errors.append((where, text))
        return self._outcome


def record_death(scratch: Path, limit: float) -> None:
    """Without workers a crash ends pytest itself: the trial it had started and not finished is to blame."""
    events = Events(scratch)
    finished = set(Following(scratch).look().results)
    started = [event["start"] for event in events.new() if "start" in event]
    open_trials = [(clause, subject, dtype) for clause, subject, dtype in started]
    open_trials = [key for key in open_trials if key not in finished]
    if open_trials:
        result = crashed(scratch, "main", open_trials[-1], limit)
        events.write(result=dataclasses.asdict(result), script=None)
