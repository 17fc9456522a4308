"""Small defects fail at every size, within the cases of a default run for one clause and dtype."""

from __future__ import annotations

import pytest

from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from tests.campaigns.sensitivity import DEFECTS, Defect, seen


@pytest.mark.parametrize(
    ("defect", "clause", "size"),
    [(d, clause, size) for d in DEFECTS for clause in d.clauses for size in d.sizes],
    ids=lambda value: value.name + "-" + value.dtype if isinstance(value, Defect) else str(value).replace(" ", ""),
)
def test_a_small_defect_fails_its_clause(defect: Defect, clause: str, size: tuple[int, int, int, int]) -> None:
    spent = PROFILES["default"].cases(load_all()[clause], "cpu")
    assert any(seen(defect, clause, size, spent)), f"{clause} passes {spent} cases of size {size}"
