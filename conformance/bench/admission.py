"""The admission of targets to a ranking: each must pass the quick profile for the group and dtypes that are timed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from conformance.errors import SuiteError
from conformance.judgement.result import PASS
from conformance.report.assemble import assemble
from conformance.report.verdict import gates
from conformance.run.execution import Run
from conformance.run.selection import Selection

GROUPS = ("layer", "linear")  # the first group that a target claims is judged and timed


@dataclass(frozen=True)
class Admission:
    """The conformance of a target.

    Attributes:
        failing: the message of each clause that makes the verdict a failure, by id; empty if the target passes.
    """

    spec: str
    name: str
    version: str | None
    group: str
    clauses: int
    failing: dict[str, str | None]

    @property
    def verdict(self) -> str:
        """`pass` or `fail`."""
        return "pass" if self.passes else "fail"

    @property
    def passes(self) -> bool:
        """Whether the target is ranked."""
        return not self.failing


def examined(spec: str, dtypes: tuple[str, ...], device: str, clauses: tuple[str, ...] = ()) -> Admission:
    """Judge a target by the quick profile, in separate processes.

    Args:
        clauses: the clauses to judge; if empty, all of the group.

    Raises:
        UsageError: if the target does not import, or has no layer and no function to time.
        SuiteError: if the suite itself failed.
    """
    lane = "cpu" if device == "cpu" else "gpu"
    selection = Selection(spec, GROUPS, clauses, dtypes=dtypes, device=device, lane=lane, profile="quick")
    with Run(selection) as run:
        plan = run.plan
        group = next(name for name in GROUPS if name in plan.groups and plan.groups[name].claimed)
        selection = dataclasses.replace(selection, groups=(group,))
        clauses_of = tuple(clause for clause in plan.clauses if clause.group == group)
        plan = dataclasses.replace(plan, groups={group: plan.groups[group]}, clauses=clauses_of)
        report = assemble(plan, run.judge(plan), selection.settings)
    if report.errors:
        raise SuiteError("\n".join(error.traceback for error in report.errors))
    return Admission(
        spec=spec,
        name=plan.target.name,
        version=plan.target.version,
        group=group,
        clauses=sum(clause.status == PASS for clause in report.clauses),
        failing={clause.id: clause.message for clause in report.clauses if gates(clause)},
    )
