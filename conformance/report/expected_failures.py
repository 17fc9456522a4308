"""The expected failures that a report gives: its failing clauses with their messages, for a file of deviations."""

from __future__ import annotations

from collections.abc import Mapping

from conformance.judgement.result import DEVIATION, PASS
from conformance.report.report import Report, ReportedClause
from conformance.report.verdict import FAILING

LONGEST = 300  # characters of a reason that is made from a message


def expected_failures(report: Report, earlier: Mapping[str, str], *, narrowed: bool) -> dict[str, str]:
    """By clause the reason: what the report fails, and what was expected earlier and is not refuted.

    Args:
        earlier: the reasons so far; those of clauses that fail or were not judged stay.
        narrowed: whether parts of clauses are left out, so that a clause which passes may fail as a whole.
    """
    found = dict(earlier)
    for clause in report.clauses:
        if clause.stale or (clause.status == PASS and not narrowed):
            found.pop(clause.id, None)
        elif clause.status == DEVIATION:
            found[clause.id] = clause.reason or _seen(clause)
        elif clause.status in FAILING:
            found.setdefault(clause.id, _seen(clause))
    return found


def _seen(clause: ReportedClause) -> str:
    """A clause's message as one line."""
    lines = [" ".join(line.split()) for line in (clause.message or clause.status).splitlines()]
    whole = "; ".join(line for line in lines if line)
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 2]} …"
