"""Objects in memory judged from a notebook or a user's own tests: in copies of this process, or in it."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from conformance.report.assemble import assemble
from conformance.report.files import finish
from conformance.report.outcome import Outcome
from conformance.report.report import Report
from conformance.run.execution import Run
from conformance.run.progress import Progress
from conformance.run.selection import Selection

if TYPE_CHECKING:
    from conformance.report.plan import Plan
    from conformance.run.trial import Trial


def judge(selection: Selection, workers: int | None, *, quiet: bool) -> tuple[Report, dict[str, str]]:
    """The report of a run whose target may be an object in memory, and the script of each failing clause.

    Raises:
        UsageError: if the target does not bind or claims nothing that was chosen.
        SuiteError: if the suite fails on its own.
    """
    begun = time.monotonic()
    _keep_interpreter()
    if _can_be_copied():
        with Run(selection) as run:
            plan, progress = run.plan, Progress(run.plan, quiet=quiet)
            try:
                outcome = run.judge(plan, workers=workers, watcher=lambda found, _: progress.update(found))
            finally:
                progress.stop()
    else:
        plan, trials = planned(selection)
        outcome = judge_here(trials)
    report = finish(assemble(plan, outcome, selection.settings), time.monotonic() - begun)
    return report, outcome.reproducers(plan)


def planned(selection: Selection) -> tuple[Plan, list[Trial]]:
    """The plan of a run, made in this process, and its trials.

    Raises:
        UsageError: if the target does not bind or claims nothing that was chosen.
    """
    from conformance.run import plan as planning
    from conformance.run.trial import loaded, trials
    from conformance.specification.clause import load_all

    _keep_interpreter()
    with _process_kept():
        plan, target = planning.plan(selection), loaded(selection.target, selection.device)
        chosen = [clause for clause in load_all().values() if selection.includes(clause.id, clause.group)]
        return plan, [each for clause in chosen for each in trials(clause, target, selection, reproduces=True)]


def judge_here(trials: Iterable[Trial]) -> Outcome:
    """The outcome of trials that are judged in this process, one after the other."""
    outcome = Outcome()
    with _process_kept():
        for trial in trials:
            outcome.add(trial.examine(), trial.reproducer)
    return outcome


def judge_clause(clause: str, plan: Plan, trials: Iterable[Trial], selection: Selection) -> Report:
    """The report of one clause of a plan, judged in this process."""
    outcome = judge_here(trial for trial in trials if trial.clause.id == clause)
    one = dataclasses.replace(plan, clauses=tuple(each for each in plan.clauses if each.id == clause))
    return assemble(one, outcome, selection.settings)


def _can_be_copied() -> bool:
    """Whether a copy of this process can judge: CUDA and its autograd threads do not survive a fork."""
    torch: Any = sys.modules.get("torch")
    return torch is None or not torch.cuda.is_initialized()


def _keep_interpreter() -> None:
    """Keep Triton's interpreter off where Triton was imported without it: kernels made so do not run in it."""
    if "triton" in sys.modules:
        os.environ.setdefault("TRITON_INTERPRET", "0")


@contextmanager
def _process_kept() -> Iterator[None]:
    """A region after which threads, the random state and filters of warnings are as before; they do not act in it."""
    import torch

    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.resetwarnings()
            yield
    finally:
        torch.set_num_threads(threads)
