"""A matrix as a table on a terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from conformance.judgement.result import CRASHED, FAIL
from conformance.report.matrix import words
from conformance.report.matrix.assemble import group_summaries
from conformance.report.matrix.matrix import Cell, Matrix, MatrixTarget
from conformance.report.terminal import STYLES, console, ratio

CLAUSE, COLUMN = 30, 17  # characters for the ids of clauses and for a target, with the space around them


def show(matrix: Matrix, folder: Path, *, quiet: bool = False, whole: bool = False) -> None:
    """Print a matrix: a row for each group and for each clause that some target does not pass, then the verdicts.

    Args:
        quiet: print only the verdicts.   whole: print a row for every clause.
    """
    out = console()
    if not quiet and matrix.rows:
        fitting = max(1, (out.width - CLAUSE) // COLUMN)
        for first in range(0, len(matrix.targets), fitting):
            out.print(_table(matrix, whole, slice(first, first + fitting)))
        out.print(words.legend(matrix))
    out.print()
    for target in matrix.targets:
        style = "bold green" if target.verdict == "pass" else "bold red"
        out.print(_verdict(target), style=style)
        for line in (target.claims, *target.forms) if target.claims else ():
            out.print(f"  {line}")
        for line in words.problem(target):
            out.print(f"  {line}")
    out.print(f"report   {folder / 'report.html'}, matrix.json, matrix.md")


def _table(matrix: Matrix, whole: bool, columns: slice) -> Any:
    """A table of some targets: the groups that one of them has, and the clauses that one of them does not pass."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("clause", overflow="fold", min_width=CLAUSE - 4)
    for target in matrix.targets[columns]:
        table.add_column(target.title, overflow="fold")
    for name in matrix.groups:
        rows = [replace(row, cells=row.cells[columns]) for _, row in matrix.of_group(name)]
        if all(cell is None for row in rows for cell in row.cells):
            continue
        sums = group_summaries(matrix, name)[columns]
        table.add_row(name, *(_styled(words.group(*found), found[0]) for found in sums), style="bold")
        for row in rows:
            if whole or not row.settled:
                table.add_row(f"  {row.id}", *(_styled(words.cell(cell), _look(cell)) for cell in row.cells))
    return table


def _look(cell: Cell | None) -> str:
    """The status that sets a cell's colour. A failure that does not gate is shown like a deviation."""
    if cell is None:
        return ""
    return "deviation" if cell.status in (FAIL, CRASHED) and not cell.gates else cell.status


def _styled(text: str, status: str) -> Any:
    from rich.text import Text

    return Text(text, style=STYLES.get(status, ""))


def _verdict(target: MatrixTarget) -> str:
    said = f"{target.verdict.replace('_', ' ').upper()} {target.title}"
    if target.versions is None:
        return said
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in target.counts.items())
    versions = f"torch {target.versions.get('torch')}"
    device = f"{target.device} ({target.device_name}, {versions})" if target.device_name else target.device
    date = f", {target.date[:10]}" if target.date else ""
    worst = f", worst passing error ÷ budget {ratio(target.worst_ratio)}" if target.worst_ratio else ""
    return f"{said}: {counts}; {target.examples:,} cases{worst}; on {device}{date}"
