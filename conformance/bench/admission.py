"""The admission of targets to a ranking, by the quick profile for the group and dtypes that are timed.

A target that fails a clause on what is timed (forward, gradients, layouts, stale caches) is not ranked: its time says
nothing. One that fails other clauses, such as those on state or initialisation, is ranked and marked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from conformance.errors import SuiteError
from conformance.judgement.result import PASS
from conformance.report.assemble import assemble
from conformance.report.verdict import gates
from conformance.run.execution import Run
from conformance.run.selection import Selection

GROUPS = ("layer", "linear")  # the first group that a target claims is judged and timed
BATCHES = ("batched",)  # with several adapters
PACKED = ("quantised",)  # likewise, on packed bases
EXPERTS = ("experts",)  # likewise, where experts are timed
# Patterns of the clauses on what is timed. A layer that keeps results of earlier calls, or writes into its inputs, is
# timed for less than its work.
TIMED = (
    *("*-FWD*", "*-BWD*", "*-LAYOUT*", "*-REL-*", "*-SIZE-*"),
    *("*-MEM-INPUTS", "*-MEM-MARGINS", "*-MEM-LATER", "*-MEM-REFILL", "*-META-*", "*-DET-REPEAT"),
)
UNTIMED = ("*-MIXED", "*-DOUBLE")  # an adapter of another dtype, and second derivatives, are not timed
WITH_DROPOUT, MEMORY_EFFICIENT = "*-DROP-*", "*-MEMORY-*"


@dataclass(frozen=True)
class Admission:
    """The conformance of a target.

    Attributes:
        failing: the message of each clause that makes the verdict a failure, by id; empty if the target passes.
        timed: patterns of the clauses on what is timed.
    """

    spec: str
    name: str
    version: str | None
    group: str
    clauses: int
    failing: dict[str, str | None]
    timed: tuple[str, ...] = TIMED

    @property
    def verdict(self) -> str:
        """`pass` or `fail`."""
        return "pass" if self.passes else "fail"

    @property
    def passes(self) -> bool:
        """Whether the target conforms."""
        return not self.failing

    @property
    def disqualifying(self) -> tuple[str, ...]:
        """The failing clauses on what is timed."""
        judged = (clause for clause in self.failing if not _matches(clause, UNTIMED))
        return tuple(clause for clause in judged if _matches(clause, self.timed))

    @property
    def ranked(self) -> bool:
        """Whether the target is ranked."""
        return not self.disqualifying


def _matches(clause: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(clause, pattern) for pattern in patterns)


def timed_clauses(*, dropout: bool, memory_efficient: bool) -> tuple[str, ...]:
    """Patterns of the clauses on what is timed, of layers with or without dropout and the memory-efficient option."""
    return (*TIMED, *[WITH_DROPOUT] * dropout, *[MEMORY_EFFICIENT] * memory_efficient)


def examined(
    spec: str,
    dtypes: tuple[str, ...],
    device: str,
    timed: tuple[str, ...] = TIMED,
    clauses: tuple[str, ...] = (),
    groups: tuple[str, ...] = GROUPS,
) -> Admission:
    """Judge a target by the quick profile, in separate processes.

    Args:
        timed: patterns of the clauses on what is timed.   clauses: the clauses to judge; if empty, all of the group.
        groups: the groups of which the first that the target claims is judged.

    Raises:
        UsageError: if the target does not import, or has no layer and no function to time.
        SuiteError: if the suite itself failed.
    """
    lane = "cpu" if device == "cpu" else "gpu"
    selection = Selection(spec, groups, clauses, dtypes=dtypes, device=device, lane=lane, profile="quick")
    with Run(selection) as run:
        plan = run.plan
        group = next(name for name in groups if name in plan.groups and plan.groups[name].claimed)
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
        timed=timed,
    )
