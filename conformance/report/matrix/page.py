"""A matrix as one self-contained HTML page. It fetches no resources and runs only its own script.

The verdict comes first, then the failures by cause, then the table of clauses. With scripts, cells of the table open in
a dialog and rows are chosen by group, status, dtype and words.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conformance.judgement.result import CRASHED, DEVIATION, FAIL, INCONCLUSIVE, NOT_CLAIMED, PASS, UNSUPPORTED
from conformance.report.diagnosis import led
from conformance.report.matrix.assemble import assemble, group_summaries
from conformance.report.matrix.columns import Column
from conformance.report.matrix.matrix import NOT_RUN, Cell, Matrix, Row
from conformance.report.terminal import listed, ratio

Place = tuple[int, int]  # a row and a column
HERE = Path(__file__).parent
LIMIT = 290_000  # bytes of a page for each target: what follows from a cause, and reproducers, are shown while they fit
LARGEST = 950_000  # bytes of a page, as long as its table and its causes fit
ENTRY = 1100  # bytes of an entry besides its case and message
IN_FULL = 40  # causes in full; of later ones the leading clause is as brief as one that follows
MOST = 600  # characters of a message that is not the leading one of a cause
WORDS = (PASS, FAIL, CRASHED, INCONCLUSIVE, DEVIATION, UNSUPPORTED, NOT_CLAIMED, NOT_RUN)
OTHERS = (DEVIATION, UNSUPPORTED)  # statuses that are no failure and have an entry of their own


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
    environment.filters |= {
        "ratio": ratio,
        "words": lambda status: status.replace("_", " "),
        "packed": _packed,
        "cut": lambda text, most: text if most is None or len(text) <= most else f"{text[:most]} …",
    }
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    matrix = assemble(columns)
    causes = causes_shown(matrix, columns)
    others = [place for place, cell in _cells(matrix) if cell.status in OTHERS]
    template = environment.get_template("page.html")

    def rendered(entries: Collection[Place], scripts: Mapping[Place, str]) -> str:
        return template.render(
            matrix=matrix,
            causes=[cause.cut_to(entries) for cause in causes],
            others=others,
            entries=entries,
            scripts=scripts,
            groups=_groups(matrix),
            statuses=_statuses(matrix),
            dtypes=_dtypes(matrix),
            in_full=IN_FULL,
            most=MOST,
            order=WORDS,
            style=style,
            style_hash=_hash(style),
            script=script,
            script_hash=_hash(script),
        )

    entries = {(cause.row, cause.column) for cause in causes}.union(others)
    limit = min(LIMIT * len(columns), LARGEST)
    entries |= _following(matrix, causes, limit - _size(rendered(entries, {})))
    return rendered(entries, _scripts(matrix, columns, causes, limit - _size(rendered(entries, {}))))


@dataclass(frozen=True)
class CauseEntry:
    """A cause of a target: the row and column of its leading cell, and the rows of the clauses that follow.

    Attributes:
        sentence: what fails like it; empty where that says nothing.   names: the first of the clauses that follow.
        left: how many of them have no entry, since the page would grow too large.
    """

    row: int
    column: int
    cell: Cell
    sentence: str
    names: str
    follows: tuple[int, ...]
    left: int = 0

    def cut_to(self, entries: Collection[Place]) -> CauseEntry:
        """The cause, with the number of clauses that have no entry."""
        return replace(self, left=sum((row, self.column) not in entries for row in self.follows))


def causes_shown(matrix: Matrix, columns: Sequence[Column]) -> list[CauseEntry]:
    """The causes of each target, in the order in which they are shown."""
    rows = {row.id: number for number, row in enumerate(matrix.rows)}
    found = []
    for place, column in enumerate(columns):
        for clause, cause in led(column.report) if column.report else ():
            cell = matrix.rows[rows[clause.id]].cells[place]
            assert cell is not None
            told = clause.status != INCONCLUSIVE and not clause.stale
            sentence = cause.sentence if told else ""
            follows = tuple(rows[name] for name in cause.follows)
            found.append(CauseEntry(rows[clause.id], place, cell, sentence, listed(list(cause.follows)), follows))
    return found


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


def _cells(matrix: Matrix) -> Iterator[tuple[Place, Cell]]:
    for number, row in enumerate(matrix.rows):
        for column, cell in enumerate(row.cells):
            if cell is not None:
                yield (number, column), cell


def _following(matrix: Matrix, causes: Sequence[CauseEntry], room: int) -> set[Place]:
    """The clauses that follow from causes and have an entry, as far as there is room."""
    found: set[Place] = set()
    for cause in causes:
        for row in cause.follows:
            cell = matrix.rows[row].cells[cause.column]
            room -= ENTRY + _size(html.escape((cell.message or "")[:MOST] + (cell.case or ""))) if cell else 0
            if room < 0:
                return found
            found.add((row, cause.column))
    return found


def _scripts(matrix: Matrix, columns: Sequence[Column], causes: Sequence[CauseEntry], room: int) -> dict[Place, str]:
    """The reproducers that the page has room for: those of leading clauses first; the others are named."""
    leading = [(cause.row, cause.column) for cause in causes]
    deviations = [place for place, cell in _cells(matrix) if cell.status == DEVIATION]
    found: dict[Place, str] = {}
    for row, column in dict.fromkeys([*leading, *deviations]):
        text = columns[column].scripts.get(matrix.rows[row].id)
        if text is not None and (size := _size(html.escape(text)) + ENTRY) <= room:
            found[row, column] = text
            room -= size
    return found


def _size(text: str) -> int:
    return len(text.encode())


def _packed(cell: Cell) -> str:
    """The dtypes of a cell, encoded for the page's script: `float32 pass 0.42 36;bfloat16 fail 2.10 36`."""
    dtypes = cell.dtypes.items()
    return ";".join(f"{name} {d.status} {ratio(d.worst_ratio)} {d.examples}" for name, d in dtypes)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
