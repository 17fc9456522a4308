"""A matrix as one self-contained HTML page. It fetches no resources and runs only its own script.

Without JavaScript the page is a table, followed by the full entries of clauses that do not pass. With JavaScript,
cells open in a dialog, and rows can be filtered by group, status, dtype and words.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance.judgement.result import CRASHED, DEVIATION, FAIL, INCONCLUSIVE, NOT_CLAIMED, PASS, UNSUPPORTED
from conformance.report.matrix.assemble import assemble, group_summaries
from conformance.report.matrix.columns import Column
from conformance.report.matrix.matrix import NOT_RUN, Cell, Matrix, Row
from conformance.report.terminal import ratio

HERE = Path(__file__).parent
SCRIPTS = 4_000_000  # characters of reproducers in one page; the page gives only the names of further ones
WORDS = (PASS, FAIL, CRASHED, INCONCLUSIVE, DEVIATION, UNSUPPORTED, NOT_CLAIMED, NOT_RUN)
IN_FULL = (FAIL, CRASHED, INCONCLUSIVE, DEVIATION, UNSUPPORTED)  # statuses with an entry of their own below the table


def document(columns: Sequence[Column]) -> str:
    """The HTML page for some columns."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"ratio": ratio, "words": lambda status: status.replace("_", " "), "packed": _packed}
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    matrix = assemble(columns)
    text: str = environment.get_template("page.html").render(
        matrix=matrix,
        groups=_groups(matrix),
        statuses=_statuses(matrix),
        dtypes=_dtypes(matrix),
        scripts=_shown(matrix, columns),
        in_full=IN_FULL,
        order=WORDS,
        not_run=NOT_RUN,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )
    return text


@dataclass(frozen=True)
class GroupRows:
    """A group on the page: its numbered rows, and a status and a text for each target."""

    name: str
    rows: list[tuple[int, Row]]
    cells: list[tuple[str, str]]


def _groups(matrix: Matrix) -> list[GroupRows]:
    return [GroupRows(name, matrix.of_group(name), group_summaries(matrix, name)) for name in matrix.groups]


def _statuses(matrix: Matrix) -> dict[str, int]:
    """The number of cells with each status, in the order of `WORDS`."""
    cells = matrix.cells
    counts = {word: sum((cell.status if cell else NOT_RUN) == word for cell in cells) for word in WORDS}
    return {word: count for word, count in counts.items() if count}


def _dtypes(matrix: Matrix) -> list[str]:
    return list(dict.fromkeys(dtype for cell in matrix.cells if cell for dtype in cell.dtypes))


def _shown(matrix: Matrix, columns: Sequence[Column]) -> dict[tuple[int, int], str]:
    """The reproducers that fit on the page, by row and column."""
    found: dict[tuple[int, int], str] = {}
    room = SCRIPTS
    for number, row in enumerate(matrix.rows):
        for place, column in enumerate(columns):
            text = column.scripts.get(row.id)
            if row.cells[place] and text is not None and len(text) <= room:
                found[number, place] = text
                room -= len(text)
    return found


def _packed(cell: Cell) -> str:
    """The dtypes of a cell, encoded for the page's script: `float32 pass 0.42 36;bfloat16 fail 2.10 36`."""
    dtypes = cell.dtypes.items()
    return ";".join(f"{name} {d.status} {ratio(d.worst_ratio)} {d.examples}" for name, d in dtypes)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
