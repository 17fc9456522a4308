"""What a judgement compares and says: infinities, numbers that are told apart, and cases that cannot fail."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from conformance.judgement.judge import compare, judge, judge_together
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive, Violation


def expected(value: float, dtype: torch.dtype = torch.float16) -> Expected:
    """An expected tensor of one element, with a relative budget of 1e-3."""
    return Expected("y", np.array([value]), np.array([abs(value) / 1000]), dtype, certified=False)


@pytest.mark.parametrize(("value", "got"), [(-74086.0, -np.inf), (74086.0, np.inf), (65500.0, np.inf)])
def test_infinity_passes_where_the_exact_result_overflows(value: float, got: float) -> None:
    assert judge(torch.tensor([got], dtype=torch.float16), expected(value)) == 0.0


@pytest.mark.parametrize(
    ("value", "got", "dtype"),
    [
        (-74086.0, np.inf, torch.float16),  # the wrong sign
        (74086.0, 65504.0, torch.float16),  # clamped to the largest number
        (60000.0, np.inf, torch.float16),  # the value fits
        (74086.0, np.inf, torch.float32),
        (74086.0, np.nan, torch.float16),
    ],
)
def test_other_infinities_and_nan_fail(value: float, got: float, dtype: torch.dtype) -> None:
    with pytest.raises(Violation, match="worst    y"):
        judge(torch.tensor([got], dtype=dtype), expected(value, dtype))


@pytest.mark.parametrize(
    ("got", "want", "said"),
    [
        (0.5, 0.25, "got 0.5, want 0.25"),
        (0.849444123, 0.849444, "got 0.849444123, want 0.849444"),
        (1 + 2**-52, 1.0, "got 1.0000000000000002, want 1"),
    ],
)
def test_the_numbers_of_the_worst_element_differ_as_shown(got: float, want: float, said: str) -> None:
    with pytest.raises(Violation) as failure:
        compare(np.array([got]), Expected("y", np.array([want]), None, torch.float64, certified=False))
    assert said in str(failure.value)


def _unclear(value: float) -> Expected:
    """An expected value so near to zero that zeros would pass as it."""
    return Expected("dp", np.array([value]), np.array([2 * abs(value)]), torch.float64)


def test_a_wrong_result_fails_where_zeros_would_pass() -> None:
    with pytest.raises(Violation, match=r"got 5, want 0\.1"):
        judge(torch.tensor([5.0], dtype=torch.float64), _unclear(0.1))
    with pytest.raises(Inconclusive, match="zeros would pass as dp"):
        judge(torch.tensor([0.1], dtype=torch.float64), _unclear(0.1))


def test_results_judged_together_need_one_that_can_fail() -> None:
    unclear = torch.tensor([0.1], dtype=torch.float64), _unclear(0.1)
    clear = torch.tensor([3.0], dtype=torch.float64), dataclasses.replace(expected(3.0, torch.float64), certified=True)
    assert judge_together([unclear, clear]) == 0.0
    with pytest.raises(Inconclusive, match="zeros would pass as dp"):
        judge_together([unclear, unclear])
    with pytest.raises(Violation, match="want 3 "):
        judge_together([unclear, (unclear[0], clear[1])])


def test_an_empty_and_an_uncertified_result_show_nothing() -> None:
    unclear = torch.tensor([0.1], dtype=torch.float64), _unclear(0.1)
    empty = torch.empty(0, dtype=torch.float64), Expected("y", np.empty(0), np.empty(0), torch.float64)
    uncertified = torch.tensor([3.0], dtype=torch.float64), expected(3.0, torch.float64)
    assert judge_together([empty, uncertified]) == 0.0
    with pytest.raises(Inconclusive, match="zeros would pass as dp"):
        judge_together([unclear, empty, uncertified])
