"""The verdict: which clauses turn it, the exit code that says it, and the status of a group."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.judgement.result import CRASHED, DEVIATION, FAIL, INCONCLUSIVE, NOT_CLAIMED, PASS, UNSUPPORTED
from conformance.report.report import Report, ReportedClause, ReportedResult
from conformance.specification.clause import MUST

FAILING = (FAIL, CRASHED, INCONCLUSIVE)
DECIDING = (CRASHED, FAIL, INCONCLUSIVE, PASS, UNSUPPORTED)  # a clause has the first of these that a trial has


def gates(clause: ReportedClause) -> bool:
    """Whether a clause turns the verdict to fail."""
    return (clause.level == MUST or clause.stale) and clause.status in FAILING


def exit_code(report: Report) -> int:
    """0: every claimed MUST clause passes; 1: one does not, or a deviation is stale; 3: the suite failed."""
    if report.errors:
        return 3
    return 1 if any(gates(clause) for clause in report.clauses) else 0


def group_status(clauses: Sequence[ReportedClause]) -> str:
    """The status of a claimed group: fail if a clause of it gates, else the best status that a clause has."""
    if any(gates(clause) for clause in clauses):
        return FAIL
    order = (PASS, DEVIATION, UNSUPPORTED, FAIL, CRASHED, INCONCLUSIVE)
    return next((status for status in order if any(clause.status == status for clause in clauses)), NOT_CLAIMED)


def failing_result(clause: ReportedClause) -> ReportedResult | None:
    """The result that stands for a failing clause: the first failing one that has its message, or else the first."""
    bad = [result for result in clause.results if result.status in FAILING]
    first = bad[0] if bad else None
    return next((result for result in bad or clause.results if result.message == clause.message), first)
