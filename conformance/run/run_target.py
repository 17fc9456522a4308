"""Judge one target for a command: plan the run, keep its journal, show its progress, and write its report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.report import files
from conformance.report.assemble import assemble
from conformance.report.terminal import console
from conformance.run import shards
from conformance.run.execution import Run
from conformance.run.journal import Journal
from conformance.run.progress import Progress

if TYPE_CHECKING:
    from conformance.report.outcome import Outcome
    from conformance.report.plan import Plan
    from conformance.report.report import Report
    from conformance.run.selection import Selection


@dataclass(frozen=True)
class Manner:
    """How trials are run.

    Attributes:
        workers, timeout, memory: the arguments of `Run.judge`.
        resume: continue an interrupted run, keeping its results.   quiet: write nothing to standard error.
        title: the first words of each progress line.
    """

    workers: int | None = None
    timeout: float | None = None
    memory: float | None = None
    resume: bool = False
    quiet: bool = False
    title: str = ""


def judge(selection: Selection, folder: Path, manner: Manner) -> tuple[Report, Plan]:
    """Judge the target, write the report to a folder, and return the report with its plan.

    Raises:
        UsageError: if the target does not import, does not bind, or claims none of the chosen groups; or if the run in
            the folder cannot be resumed.
        SuiteError: if the suite fails on its own.
        KeyboardInterrupt: with a message that says how to continue.
    """
    files.prepare(folder)
    with Run(selection) as run:
        plan = shards.part(run.plan, selection.shard)
        journal = _journal(selection, folder, run.plan, manner)
        progress = Progress(plan, title=manner.title, quiet=manner.quiet)

        def watch(outcome: Outcome, _: int) -> None:
            journal.record(outcome)
            progress.update(outcome)

        limits: dict[str, Any] = {"workers": manner.workers, "timeout": manner.timeout, "memory": manner.memory}
        try:
            outcome = run.judge(plan, known_before=journal.recorded.outcome, watcher=watch, **limits)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the same command with --resume continues from {journal.path}") from None
        finally:
            progress.stop()
    report = assemble(dataclasses.replace(plan, device_name=journal.devices), outcome, selection.settings)
    report = files.finish(report, journal.seconds)
    files.write(folder, report, outcome.reproducers(plan))
    return report, plan


def _journal(selection: Selection, folder: Path, plan: Plan, manner: Manner) -> Journal:
    """Start or resume the journal. If it is resumed, print how many results it has."""
    if not manner.resume:
        return Journal.begin(folder, selection, plan)
    journal = Journal.resume(folder, selection, plan)
    done, left = len(journal.recorded.outcome.results), len(journal.recorded.left)
    text = f"resuming: {done} trials have their result, {left} are left"
    if not left:
        text = f"nothing is left to do: all {done} trials have their result"
    elif not done:
        text = f"nothing to resume in {str(folder)!r}: all {left} trials are run"
    if not manner.quiet:
        console(stderr=True).print(manner.title + text)
    return journal
