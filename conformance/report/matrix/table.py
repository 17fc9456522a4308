"""A matrix on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conformance.judgement.result import CRASHED, FAIL
from conformance.report.matrix import settled, summary, words
from conformance.report.terminal import STYLES, console, ratio


def show(matrix: dict[str, Any], folder: Path, *, quiet: bool = False, whole: bool = False) -> None:
    """Print a matrix: a row for each group, and for each clause that a target does not pass; then the verdicts.

    Args:
        quiet: the verdicts only.   whole: a row for every clause.
    """
    out = console()
    if not quiet and matrix["clauses"]:
        out.print(_table(matrix, whole))
        out.print(words.legend(matrix))
    out.print()
    for target in matrix["targets"]:
        style = "bold green" if target["verdict"] == "pass" else "bold red"
        out.print(_verdict(target), style=style)
        for line in words.problem(target):
            out.print(f"  {line}")
    out.print(f"report   {folder / 'report.html'}, matrix.json, matrix.md")


def _table(matrix: dict[str, Any], whole: bool) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("clause", overflow="fold")
    for target in matrix["targets"]:
        table.add_column(words.title(target), overflow="fold")
    for name in dict.fromkeys(clause["group"] for clause in matrix["clauses"]):
        clauses = [clause for clause in matrix["clauses"] if clause["group"] == name]
        columns = zip(*(clause["cells"] for clause in clauses), strict=True)
        sums = [summary(column) for column in columns]
        table.add_row(name, *(_styled(words.group(*found), found[0]) for found in sums), style="bold")
        for clause in clauses:
            if whole or not settled(clause):
                cells = [_styled(words.cell(cell), _look(cell)) for cell in clause["cells"]]
                table.add_row(f"  {clause['id']}", *cells)
    return table


def _look(cell: dict[str, Any] | None) -> str:
    """The status that gives a cell its colour: what does not gate is no alarm."""
    if cell is None:
        return ""
    status = str(cell["status"])
    return "deviation" if status in (FAIL, CRASHED) and not cell["gates"] else status


def _styled(text: str, status: str) -> Any:
    from rich.text import Text

    return Text(text, style=STYLES.get(status, ""))


def _verdict(target: dict[str, Any]) -> str:
    said = f"{target['verdict'].replace('_', ' ').upper()} {words.title(target)}"
    if target["versions"] is None:
        return said
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in target["counts"].items())
    versions = f"torch {target['versions'].get('torch')}"
    device = f"{target['device']} ({target['device_name']}, {versions})" if target["device_name"] else target["device"]
    date = f", {target['date'][:10]}" if target["date"] else ""
    worst = f", worst passing error ÷ budget {ratio(target['worst_ratio'])}" if target["worst_ratio"] else ""
    return f"{said}: {counts}; {target['examples']:,} cases{worst}; on {device}{date}"
