"""The words for a cell, a group and a target, in the table of a terminal and in Markdown."""

from __future__ import annotations

from conformance.judgement.result import CRASHED, DEVIATION, FAIL, INCONCLUSIVE, NOT_CLAIMED, PASS, UNSUPPORTED
from conformance.report.matrix.matrix import NOT_RUN, Cell, Matrix, MatrixTarget
from conformance.report.terminal import ratio
from conformance.report.verdict import FAILING

SIGNS = {
    PASS: "✓",
    FAIL: "✗",
    CRASHED: "‼",
    INCONCLUSIVE: "?",
    DEVIATION: "≠",
    UNSUPPORTED: "∅",
    NOT_CLAIMED: "–",
    NOT_RUN: "·",
}


def cell(found: Cell | None) -> str:
    """A cell: `✓ 0.42`, `✗ fail 2.10`, `✗ fail (SHOULD)`, `–` where the target does not claim the clause."""
    if found is None:
        return SIGNS[NOT_RUN]
    parts = [SIGNS[found.status]]
    if found.status not in (PASS, NOT_CLAIMED):
        parts.append(found.status)
    if found.worst_ratio is not None:
        parts.append(ratio(found.worst_ratio))
    if found.status in FAILING and not found.gates:
        parts.append("(SHOULD)")
    return " ".join(parts)


def group(status: str, text: str) -> str:
    """A group on one target, from its summary: `✓ 38 of 38`, `–`."""
    return SIGNS[status] if text == status.replace("_", " ") else f"{SIGNS[status]} {text}"


def verdict(target: MatrixTarget) -> str:
    """A target's verdict, with its sign."""
    sign = {"pass": "✓", "not_judged": "–"}.get(target.verdict, "✗")
    return f"{sign} {target.verdict.replace('_', ' ')}"


def problem(target: MatrixTarget, most: int = 8) -> list[str]:
    """Why a target has no verdict, as not too many lines."""
    lines = (target.problem or "").splitlines()
    return [*lines[:most], f"… and {len(lines) - most} lines in report.html"] if len(lines) > most else lines


def legend(matrix: Matrix) -> str:
    """The meaning of the signs that a matrix has."""
    there = {cell.status if cell else NOT_RUN for cell in matrix.cells}
    signs = ", ".join(f"{sign} {status.replace('_', ' ')}" for status, sign in SIGNS.items() if status in there)
    return f"{signs}; a number is the worst error ÷ budget, above 1 it fails"
