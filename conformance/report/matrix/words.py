"""The text of a cell, a group and a target, for the terminal and for Markdown."""

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
    """The text of a cell: `✓ 0.42`, `✗ fail 2.10`, `✗ fail (SHOULD)`, or `–` if the clause is not claimed."""
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
    """The text of a group on one target, from its summary: `✓ 38 of 38` or `–`."""
    return SIGNS[status] if text == status.replace("_", " ") else f"{SIGNS[status]} {text}"


def verdict(target: MatrixTarget) -> str:
    """A target's verdict with its sign."""
    sign = {"pass": "✓", "not_judged": "–"}.get(target.verdict, "✗")
    return f"{sign} {target.verdict.replace('_', ' ')}"


def problem(target: MatrixTarget, most: int = 8) -> list[str]:
    """The reason why a target has no verdict, shortened to a number of lines."""
    lines = (target.problem or "").splitlines()
    return [*lines[:most], f"… and {len(lines) - most} lines in report.html"] if len(lines) > most else lines


def legend(matrix: Matrix) -> str:
    """The meaning of the signs that occur in a matrix."""
    there = {cell.status if cell else NOT_RUN for cell in matrix.cells}
    signs = ", ".join(f"{sign} {status.replace('_', ' ')}" for status, sign in SIGNS.items() if status in there)
    return f"{signs}; a number is the worst error ÷ budget, above 1 it fails"
