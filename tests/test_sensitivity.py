"""Small defects show at every size: within the cases that a default run spends on one clause and dtype."""

from __future__ import annotations

import pytest

from tests.sensitivity import DEFECTS, Defect, seen

SPENT = 24


@pytest.mark.parametrize(
    ("defect", "clause", "size"),
    [(d, clause, size) for d in DEFECTS for clause in d.clauses for size in d.sizes],
    ids=lambda value: value.name + "-" + value.dtype if isinstance(value, Defect) else str(value).replace(" ", ""),
)
def test_a_small_defect_shows(defect: Defect, clause: str, size: tuple[int, int, int, int]) -> None:
    assert any(seen(defect, clause, size, SPENT)), f"{clause} passes {SPENT} cases of size {size}"
