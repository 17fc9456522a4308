"""The budget of DoRA's dropout probe."""

from __future__ import annotations

import pytest

from conformance.cases.linear_case import LinearCase
from conformance.specification.clause import load_all
from conformance.target.target import Target
from tests.campaigns import variants


@pytest.mark.parametrize("name", ["rank by rank", "eager"])
def test_an_element_below_the_smallest_normal_number_may_be_rounded_to_a_step(name: str) -> None:
    """In this case an element of y is 23.2 of float16's smallest steps: a right layer stores 23."""
    clause = load_all()["DORA-DROP-PRE"]
    (subject,) = Target.of(variants.VARIANTS[name]).subjects(clause)
    case = "seed=137 dtype=float16 m=33 k=64 n=64 r=64 values=normal dropout=0.1 position=pre special=identity"
    ratio = clause.check(subject, LinearCase.parse(case))
    assert ratio is not None
    assert ratio < 0.25
