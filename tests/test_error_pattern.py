"""The pattern of an error: it names a mistake only where enough elements show it."""

from __future__ import annotations

import numpy as np

from conformance.judgement.error_pattern import describe
from conformance.numerics.formats import Array

WANT = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
TERM = np.array([[0.5, 0.25, 1.0], [3.0, 1.0, 2.0]])


def pattern(got: Array, **mistakes: Array) -> str:
    """The pattern where every element that differs is wrong."""
    return describe(got, WANT, got != WANT, {"base": TERM}, {name.replace("_", " "): m for name, m in mistakes.items()})


def test_a_mistake_is_named_before_other_relations() -> None:
    assert pattern(WANT * 2, it_were_doubled=WANT * 2).endswith("all; as if it were doubled")
    assert pattern(WANT * 2, it_were_halved=WANT / 2).endswith("all; constant ratio 2")


def test_one_element_has_no_pattern_but_nan() -> None:
    for value in (0.0, 0.5, 2.0, 1.5):
        got = WANT.copy()
        got[0, 0] = value
        assert pattern(got, it_were_so=got) == "1 of 6 elements wrong; all in row 0 of 2, column 0 of 3"
    got[0, 0] = np.nan
    assert pattern(got).endswith("; NaN")


def test_a_mistake_that_is_as_far_from_the_result_as_the_right_value_is_not_named() -> None:
    rounded = WANT * (1 + np.array([[1, -1, 1], [-1, 1, -1]]) * 1e-3)
    assert "as if" not in pattern(rounded, it_were_larger=WANT * 1.002)
    assert pattern(WANT * 1.002, it_were_larger=WANT * 1.002).endswith("as if it were larger")


def test_a_missing_term_is_named() -> None:
    assert pattern(WANT - TERM).endswith("as if the base term were missing")
    assert pattern(WANT + TERM).endswith("as if the base term were added twice")
