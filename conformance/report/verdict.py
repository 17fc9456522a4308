"""The verdict: the clauses that decide it, the exit code, and the status of a group."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.judgement.result import CRASHED, DEVIATION, FAIL, INCONCLUSIVE, NOT_CLAIMED, PASS, UNSUPPORTED
from conformance.report.report import Report, ReportedClause, ReportedResult
from conformance.specification.clause import MUST

FAILING = (FAIL, CRASHED, INCONCLUSIVE)
DECIDING = (CRASHED, FAIL, INCONCLUSIVE, PASS, UNSUPPORTED)  # a clause gets the first status that one of its trials has


def gates(clause: ReportedClause) -> bool:
    """Whether a clause makes the verdict a failure."""
    return (clause.level == MUST or clause.stale) and clause.status in FAILING


def by_interest(clauses: Sequence[ReportedClause]) -> list[ReportedClause]:
    """Clauses in the order in which failures are read.

    What decides the verdict comes first, then group by group the plainest clauses: LIN-FWD before LIN-FWD-MIXED.
    """
    groups = list(dict.fromkeys(clause.group for clause in clauses))
    return sorted(clauses, key=lambda c: (not gates(c), groups.index(c.group), c.id.count("-")))


def exit_code(report: Report) -> int:
    """The exit code. 0: every claimed MUST clause passes; 1: one does not, or a deviation is stale; 3: suite failed."""
    if report.errors:
        return 3
    return 1 if any(gates(clause) for clause in report.clauses) else 0


def group_status(clauses: Sequence[ReportedClause]) -> str:
    """The status of a claimed group: fail if one of its clauses gates, else the best status of its clauses."""
    if any(gates(clause) for clause in clauses):
        return FAIL
    order = (PASS, DEVIATION, UNSUPPORTED, FAIL, CRASHED, INCONCLUSIVE)
    return next((status for status in order if any(clause.status == status for clause in clauses)), NOT_CLAIMED)


def failing_result(clause: ReportedClause) -> ReportedResult | None:
    """The result to show for a failing clause: the first failing result with the clause's message, else the first."""
    bad = [result for result in clause.results if result.status in FAILING]
    first = bad[0] if bad else None
    return next((result for result in bad or clause.results if result.message == clause.message), first)
