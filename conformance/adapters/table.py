"""The table of golden adapters and their loaders: on a terminal, as JSON, and as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from conformance.adapters.catalogue import BY_NAME
from conformance.adapters.judgement import FAILING, MISSING, REFUSED, RIGHT, UNCLEAR, WRONG, Cell

SIGNS = {RIGHT: "✓", REFUSED: "∅ refused", UNCLEAR: "‼ unclear", WRONG: "✗", MISSING: "–"}
STYLES = {RIGHT: "green", REFUSED: "yellow", UNCLEAR: "bold red", WRONG: "bold red", MISSING: "dim"}
NARROW = 3  # loaders, beside which there is room for what an adapter shows
LEGEND = (
    "✓ right, ∅ refused with a clear error, ✗ wrong without an error (worst error ÷ budget; ! with a warning), "
    "‼ an error that does not name what is refused, – not asked."
)


@dataclass(frozen=True)
class Column:
    """What one loader made of the golden adapters.

    Attributes:
        target: the target's module.   name, version: as it declares them.
        problem: why it was not judged; empty if it was.
    """

    target: str
    name: str
    version: str | None
    cells: Mapping[str, Cell] = field(default_factory=dict)
    problem: str = ""

    @property
    def title(self) -> str:
        """The name and the version."""
        return f"{self.name} {self.version or ''}".strip()

    def exit_code(self) -> int:
        """The exit code. 0: no cell fails; 1: one does; 2: not judged, or no adapter was loaded at all."""
        statuses = [cell.status for cell in self.cells.values()]
        if any(status in FAILING for status in statuses):
            return 1
        return 0 if RIGHT in statuses else 2

    def verdict(self) -> str:
        """The verdict in one line."""
        if self.problem:
            return f"NOT JUDGED {self.target}: {self.problem}"
        statuses = [cell.status for cell in self.cells.values()]
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in SIGNS if status in statuses)
        word = {0: "PASS", 1: "FAIL"}.get(self.exit_code(), "NOTHING LOADED")
        return f"{word} {self.title}: of {len(statuses)} golden adapters {counts}"


def sign(cell: Cell | None) -> str:
    """A cell of the table."""
    if cell is None:
        return "·"
    if cell.status != WRONG:
        return SIGNS[cell.status]
    ratio = "" if cell.ratio is None or math.isinf(cell.ratio) else f" {cell.ratio:.2g}"
    return f"{SIGNS[WRONG]}{ratio}{'!' * bool(cell.warned)}"


def rows(columns: list[Column]) -> list[str]:
    """The adapters that some column has, in the order of the catalogue."""
    return [name for name in BY_NAME if any(name in column.cells for column in columns)]


def to_json(columns: list[Column]) -> dict[str, Any]:
    """The table as JSON."""
    return {
        "adapters": {name: {"base": BY_NAME[name].base, "shows": BY_NAME[name].shows} for name in rows(columns)},
        "loaders": [
            {
                "target": column.target,
                "name": column.name,
                "version": column.version,
                "problem": column.problem,
                "exit_code": column.exit_code(),
                "cells": {name: cell.to_json() for name, cell in column.cells.items()},
            }
            for column in columns
        ],
    }


def from_json(found: Mapping[str, Any]) -> list[Column]:
    """The columns of a table that `to_json` made."""
    columns = []
    for loader in found["loaders"]:
        cells = {name: _cell(cell) for name, cell in loader["cells"].items()}
        columns.append(Column(loader["target"], loader["name"], loader["version"], cells, loader["problem"]))
    return columns


def _cell(found: Mapping[str, Any]) -> Cell:
    """A cell as JSON holds it, where null stands for the infinite ratio of a wrong result."""
    infinite = found["status"] == WRONG and found["ratio"] is None
    return Cell(**dict(found) | {"ratio": math.inf if infinite else found["ratio"]})


def markdown(columns: list[Column]) -> str:
    """The table as a page."""
    judged = [column for column in columns if not column.problem]
    lines = ["# One adapter, one ΔW", "", "Written by `loraspec adapters`. " + LEGEND, ""]
    lines.append(f"| adapter | shows | {' | '.join(column.title for column in judged)} |")
    lines.append(f"| --- | --- |{' --- |' * len(judged)}")
    for name in rows(judged):
        cells = " | ".join(sign(column.cells.get(name)) for column in judged)
        lines.append(f"| {name} | {_escaped(BY_NAME[name].shows)} | {cells} |")
    for column in judged:
        told = {name: cell for name, cell in column.cells.items() if cell.message}
        lines += ["", f"## {column.title}", "", f"`loraspec adapters {column.target}`: {column.verdict()}", ""]
        lines += [f"- {name}: {sign(cell)}, {_escaped(_told(cell))}" for name, cell in told.items()]
    return "\n".join(lines).rstrip() + "\n"


def _told(cell: Cell) -> str:
    """The message of a cell in one line."""
    warned = f"; warned: {cell.warned}" if cell.warned else ""
    return " ".join(cell.message.split()) + warned


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def show(columns: list[Column], *, quiet: bool) -> None:
    """Print the table, the failing cells and the verdicts."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from conformance.report.terminal import console

    out = console()
    judged = [column for column in columns if not column.problem]
    if judged and not quiet:
        told = len(judged) <= NARROW
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("adapter", no_wrap=True)
        for title in [*["shows"] * told, *(column.title for column in judged)]:
            table.add_column(title, overflow="fold")
        for name in rows(judged):
            cells = [column.cells.get(name) for column in judged]
            styled = [Text(sign(cell), style=STYLES[cell.status] if cell else "") for cell in cells]
            table.add_row(name, *[BY_NAME[name].shows] * told, *styled)
        out.print(table)
        out.print(LEGEND)
    for column in columns:
        for cell in column.cells.values():
            if cell.status in FAILING:
                out.print()
                out.print(f"{column.title}: {cell.message}{f'{chr(10)}warned   {cell.warned}' if cell.warned else ''}")
    out.print()
    for column in columns:
        out.print(column.verdict(), style="bold green" if column.exit_code() == 0 else "bold red")
