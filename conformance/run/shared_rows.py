"""The rows of covering arrays that `quick` spreads over the clauses of a group, as `loraspec spec` chooses them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.specification.clause import Clause

# For each group a digest of what its rows were chosen from, and for each clause the rows: their numbers, by dtype.
CHOSEN = Path(__file__).with_name("shared_rows.json")
Rows = dict[str, dict[str, list[int]]]
Row = tuple[str, int]  # the dtype in whose rows the row is counted, and its number


@cache
def read() -> tuple[dict[str, str], Rows]:
    """The digests of the groups, and the rows of the clauses."""
    found = json.loads(CHOSEN.read_text(encoding="utf-8")) if CHOSEN.exists() else {"groups": {}, "clauses": {}}
    return found["groups"], found["clauses"]


def rows_of(clause: Clause, dtype: str, *, whole: bool = False) -> tuple[Row, ...]:
    """The shared rows that a clause takes in one dtype, or with `whole` those of its other dtypes too."""
    chosen = read()[1].get(clause.id, {})
    others = [name for name in clause.dtypes if name != dtype] if whole else []
    return tuple((name, number) for name in (dtype, *others) for number in chosen.get(name, ()))
