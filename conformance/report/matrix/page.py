"""A matrix as one HTML page: everything in it, nothing fetched, and no script runs but its own.

Without scripts it is a table, and below it what does not pass in full; with them cells open in a dialog and rows are
chosen by group, status, dtype and words.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conformance.judgement.result import CRASHED, DEVIATION, FAIL, INCONCLUSIVE, NOT_CLAIMED, PASS, UNSUPPORTED
from conformance.report.matrix import NOT_RUN, assemble, summary
from conformance.report.matrix.columns import Column

HERE = Path(__file__).parent
SCRIPTS = 4_000_000  # characters of reproducers in one page: later ones are named, not shown
WORDS = (PASS, FAIL, CRASHED, INCONCLUSIVE, DEVIATION, UNSUPPORTED, NOT_CLAIMED, NOT_RUN)
IN_FULL = (FAIL, CRASHED, INCONCLUSIVE, DEVIATION, UNSUPPORTED)  # what has its own entry below the table


def document(columns: Sequence[Column]) -> str:
    """The page of these columns."""
    import jinja2

    from conformance.report.terminal import ratio

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


def _groups(matrix: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows by group, numbered, with what became of each group on each target."""
    rows = list(enumerate(matrix["clauses"]))
    found = []
    for name in dict.fromkeys(clause["group"] for clause in matrix["clauses"]):
        members = [(number, clause) for number, clause in rows if clause["group"] == name]
        cells = zip(*(clause["cells"] for _, clause in members), strict=True)
        found.append({"name": name, "rows": members, "cells": [summary(column) for column in cells]})
    return found


def _statuses(matrix: dict[str, Any]) -> dict[str, int]:
    """How many cells have each status, in the order of interest."""
    cells = [cell for clause in matrix["clauses"] for cell in clause["cells"]]
    counts = {word: sum((cell["status"] if cell else NOT_RUN) == word for cell in cells) for word in WORDS}
    return {word: count for word, count in counts.items() if count}


def _dtypes(matrix: dict[str, Any]) -> list[str]:
    cells = [cell for clause in matrix["clauses"] for cell in clause["cells"] if cell]
    return list(dict.fromkeys(dtype for cell in cells for dtype in cell["dtypes"]))


def _shown(matrix: dict[str, Any], columns: Sequence[Column]) -> dict[tuple[int, int], str]:
    """The reproducers that the page has room for, by row and column."""
    found: dict[tuple[int, int], str] = {}
    room = SCRIPTS
    for row, clause in enumerate(matrix["clauses"]):
        for number, column in enumerate(columns):
            text = column.scripts.get(clause["id"])
            if clause["cells"][number] and text is not None and len(text) <= room:
                found[row, number] = text
                room -= len(text)
    return found


def _packed(cell: dict[str, Any]) -> str:
    """What became of a cell by dtype, as the page's script reads it: `float32 pass 0.42 36;bfloat16 fail 2.10 36`."""
    from conformance.report.terminal import ratio

    dtypes = cell["dtypes"].items()
    return ";".join(f"{name} {d['status']} {ratio(d['worst_ratio'])} {d['examples']}" for name, d in dtypes)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
