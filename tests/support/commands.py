"""Run `loraspec` and pytest in separate processes, in the folder of the small targets."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conformance.report.assemble import assemble
from conformance.report.outcome import Outcome
from conformance.report.report import Report
from conformance.run import plan as planning
from conformance.run.selection import Selection
from conformance.run.trial import loaded, trials
from conformance.specification.clause import load_all
from tests.support import preloaded_process

PATIENCE = 900  # seconds for one process: it may import torch several times, at a minute each on a busy machine
TARGETS = Path(__file__).parents[1] / "targets"
WITHOUT_SUITE = Path(__file__).parents[1] / "without_suite"  # on PYTHONPATH, it makes importing the suite fail


def python(
    *arguments: str, cwd: Path = TARGETS, timeout: float = PATIENCE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments; `environment` adds to the variables of this process."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def loraspec(*arguments: str, cwd: Path = TARGETS, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run the command in a fork; with PYTHONHASHSEED in a new process, since a fork keeps its parent's hash seed."""
    if "PYTHONHASHSEED" in os.environ:
        return python("-m", "conformance", *arguments, cwd=cwd, timeout=timeout)
    return preloaded_process.command("loraspec", arguments, cwd, timeout)


def pytested(*arguments: str, cwd: Path = TARGETS, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run pytest in a process that has already imported the suite."""
    return preloaded_process.command("pytest", arguments, cwd, timeout)


def run_target(target: str, folder: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run `loraspec run` with the quick profile; return its process and its report."""
    ended = loraspec("run", target, "--profile", "quick", "--report-dir", str(folder), *options)
    assert (folder / "report.json").exists(), ended.stdout + ended.stderr
    return ended, report_in(folder)


def report_in(folder: Path) -> dict[str, Any]:
    """Return the report in a report folder."""
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def judged(target: str, **options: Any) -> Report:
    """What a run of a small target reports, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(TARGETS), *sys.path])
        selection = Selection.of(target, profile="quick", **options)
        plan, outcome = planning.plan(selection), Outcome()
        loaded_target = loaded(selection.target, selection.device)
        for clause in load_all().values():
            if selection.includes(clause.id, clause.group):
                for trial in trials(clause, loaded_target, selection):
                    outcome.add(trial.examine())
    return dataclasses.replace(assemble(plan, outcome, selection.settings), seconds=1.0)


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a report without its times and date, which differ between runs."""
    copy = json.loads(json.dumps(report))
    for name in ("seconds", "date"):
        copy.pop(name)
    for clause in copy["clauses"]:
        for result in clause["results"]:
            result.pop("seconds")
    return copy
