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

from conformance.report import Outcome
from conformance.result import Result
from conformance.selection import Selection, UsageError
from conformance.shards import keys
from conformance.watch import Events, crashed

HERE = Path(__file__).resolve().parent
TIMEOUTS = {"quick": 120.0, "default": 600.0, "nightly": 7200.0}  # seconds for one trial
IMPORT_TIMEOUT = 120.0
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
        out, log = Path(folder) / "plan.json", Path(folder) / "log"
        request = json.dumps(dataclasses.asdict(selection))
        command = [sys.executable, "-m", "conformance.smoke", request, str(out)]
        with log.open("wb") as output:
            try:
                ended = subprocess.run(
                    command, stdout=output, stderr=output, timeout=timeout, check=False, env=_environment()
                )
            except subprocess.TimeoutExpired:
                raise UsageError(
                    f"target {selection.target!r} does not import within {timeout:g} s{_tail(log)}"
                ) from None
        if not out.exists():
            raise UsageError(
                f"importing target {selection.target!r} ended the process, exit code {ended.returncode}{_tail(log)}"
            )
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
    watcher: Watcher = lambda outcome, planned: None,  # noqa: ARG005
    known: Outcome | None = None,
) -> Outcome:
    """Run every planned trial that is not known yet; return what came of all of them.

    A trial that ends its process is recorded as crashed, and the others go on.

    Raises:
        SuiteError: if pytest fails without saying which trial did.
    """
    wanted = set(keys(plan))
    outcome = known or Outcome()
    left = len(wanted - set(outcome.results))
    count = processes(left, selection.device) if workers is None else workers
    limit = TIMEOUTS[selection.profile] if timeout is None else timeout
    with tempfile.TemporaryDirectory(prefix="loraspec-") as folder:
        scratch = Path(folder)
        _write(scratch, outcome)
        while not outcome.errors and wanted - set(outcome.results):
            before = len(outcome.results)
            (scratch / "wanted.json").write_text(json.dumps(sorted(wanted - set(outcome.results))))
            status = _pytest(selection, plan, scratch, count, limit, lambda: watcher(_read(scratch), len(wanted)))
            outcome = _read(scratch)
            if count == 0 and wanted - set(outcome.results) and not outcome.errors:
                _record_death(scratch, limit)
                outcome = _read(scratch)
            if len(outcome.results) == before and not outcome.errors:
                raise SuiteError(f"pytest ended with status {status} and no result{_tail(scratch / 'log', 60)}")
    watcher(outcome, len(wanted))
    return outcome


def processes(trials: int, device: str) -> int:
    """Worker processes for so many trials: not more than processors, nor than is worth their start."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available, 8 if device == "cpu" else 4, math.ceil(trials / 16)))


def _pytest(
    selection: Selection,
    plan: dict[str, Any],
    scratch: Path,
    workers: int,
    limit: float,
    poll: Callable[[], None],
) -> int:
    # a session of our own making: no plugin, configuration or conftest of the user's takes part in it
    groups = [group for group, about in plan["groups"].items() if about["claimed"]]
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={HERE.parent}", "--noconftest"]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider", "-p", "conformance.plugin"]
    command += ["-p", "xdist.plugin", "-n", str(workers), "--dist=worksteal", "--max-worker-restart=1000000"]
    command += [f"--loraspec-scratch={scratch}", f"--loraspec-timeout={limit}", *selection.arguments()]
    command += ["--pyargs", *(f"conformance.test_{group}" for group in groups)]
    environment = {k: v for k, v in _environment().items() if not k.startswith(("PYTEST_", "TRITON_INTERPRET"))}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if plan["interpreting"]:
        environment["TRITON_INTERPRET"] = "1"
    with (scratch / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.2)
                poll()
        except BaseException:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return process.returncode


def _environment() -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **threads}


def _write(scratch: Path, outcome: Outcome) -> None:
    events = Events(scratch)
    for key, result in outcome.results.items():
        events.write(result=dataclasses.asdict(result), script=outcome.scripts.get(key))
    for where, text in outcome.errors:
        events.write(error=text, where=where)


def _read(scratch: Path) -> Outcome:
    outcome = Outcome()
    for event in Events(scratch).read():
        match event:
            case {"result": dict(result), "script": script}:
                outcome.add(Result(**result), script if isinstance(script, str) else None)
            case {"error": str(text), "where": str(where)}:
                outcome.errors.append((where, text))
    return outcome


def _record_death(scratch: Path, limit: float) -> None:
    """Without workers a crash ends pytest itself: the trial it had started and not finished is to blame."""
    events = Events(scratch)
    finished = set(_read(scratch).results)
    started = [event["start"] for event in events.read() if "start" in event]
    open_trials = [(clause, subject, dtype) for clause, subject, dtype in started]
    open_trials = [key for key in open_trials if key not in finished]
    if open_trials:
        result = crashed(scratch, "main", open_trials[-1], limit)
        events.write(result=dataclasses.asdict(result), script=None)


def _tail(log: Path, lines: int = 8) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip() if log.exists() else ""
    return "".join(f"\n  {line}" for line in text.splitlines()[-lines:])
