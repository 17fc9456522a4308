"""The noise judgement passes noise that follows the law and fails noise that does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conformance.clauses.fhe import noise_statistics
from conformance.clauses.fhe.noise_statistics import judge_columns, judge_rows, judge_unrelated, spread_of
from conformance.judgement.outcomes import Violation

ROWS, COLUMNS, SIGMA = 64, 8, 19.0
Draw = Callable[[np.random.Generator], float]


def ratio(random: np.random.Generator) -> float:
    over, under = random.standard_normal((40, 1)), random.standard_normal((40, 3))
    return float((over**2).mean() / (under**2).mean())


BOUNDS: dict[str, Draw] = {
    "square": lambda r: noise_statistics._of_squares(float((r.standard_normal(40) ** 2).mean()), 40),
    "mean": lambda r: noise_statistics._of_mean(float(r.standard_normal(40).mean()), 40, 0.0),
    "ratio": lambda r: noise_statistics._of_ratio(ratio(r), 40, 120),
    "product": lambda r: noise_statistics._of_product(
        float((r.standard_normal(40) * r.standard_normal(40)).mean()), 40
    ),
    "count": lambda r: noise_statistics._of_count(float((r.random(40) < 0.1).mean()), 0.1, 40),
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_right_noise_exceeds_a_bound_with_the_derived_probability(bound: str) -> None:
    random, draws = np.random.default_rng(5), 4000
    exponents = np.array([BOUNDS[bound](random) for _ in range(draws)])
    for exponent in (1.0, 2.0, 3.0, 4.0):
        most = 2 * math.exp(-exponent)  # both tails
        assert (exponents > exponent).mean() <= most + 4 * math.sqrt(most / draws)
    # the statistics are nearly normal, so they exceed a bound about as often as a normal value exceeds √(2x)
    assert (exponents > 1.0).mean() == pytest.approx(math.erfc(1.0), rel=0.35)


def noise(random: np.random.Generator, rows: int = ROWS) -> Any:
    """Noise as mode `simulate` draws it: correlation 0.5 within a row, rounded to integers."""
    shared, own = random.standard_normal((rows, 1)), random.standard_normal((rows, COLUMNS))
    return np.rint(SIGMA * (shared + own) / math.sqrt(2))


def judged(drawn: Any, spread: float = 0.0) -> str:
    try:
        judge_columns(drawn, np.full(COLUMNS, SIGMA), spread=spread)
        judge_rows(drawn, np.full(COLUMNS, SIGMA), spread=spread)
    except Violation as violation:
        return str(violation)
    return ""


def test_right_noise_passes() -> None:
    random = np.random.default_rng(1)
    assert not any(judged(noise(random)) for _ in range(500))


def test_noise_under_keys_with_unusually_many_or_few_ones_passes() -> None:
    random, spread = np.random.default_rng(2), spread_of(2048)
    ones = random.binomial(2048, 0.5, 500) / 1024
    assert abs(ones - 1).max() < spread
    assert not any(judged(noise(random) * math.sqrt(part), spread) for part in ones)


DEFECTS: dict[str, tuple[Callable[[Any, np.random.Generator], Any], str]] = {
    "none": (lambda n, _: n * 0, "has a deviation of 0 in 64 rows"),
    "half": (lambda n, _: np.rint(n / 2), "deviation of"),
    "twice": (lambda n, _: n * 2, "has a deviation of"),
    "a half more": (lambda n, _: np.rint(n * 1.5), "deviation of"),
    "up": (lambda n, _: n + 25, "has a mean of"),
    "columns apart": (
        lambda n, r: np.rint(r.standard_normal(n.shape) * SIGMA),
        "of two columns of a row correlates by",
    ),
    "columns alike": (lambda n, _: n[:, :1].repeat(COLUMNS, 1), "of two columns of a row correlates by 1 "),
    "rows alike": (lambda n, _: n[::2].repeat(2, 0), "correlates by 1 from row to row"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_wrong_noise_nearly_always_fails(defect: str) -> None:
    random = np.random.default_rng(3)
    change, says = DEFECTS[defect]
    seen = [judged(change(noise(random), random), spread_of(2048)) for _ in range(100)]
    assert sum(map(bool, seen)) >= 95
    assert sum(says in message for message in seen) >= 90, seen[0]


def test_noise_that_rounds_to_zero_is_judged_by_its_deviation() -> None:
    random = np.random.default_rng(4)
    for sigma in (0.0, 0.05, 0.2, 0.5, 0.9):
        drawn = np.rint(random.standard_normal((200, 1)) * sigma)
        judge_columns(drawn, np.array([sigma]))
        drawn[::4] += 1
        with pytest.raises(Violation, match=r"is not zero in|is 1: expected"):
            judge_columns(drawn, np.array([sigma / 3]))
    one = np.rint(random.standard_normal((200, 1)) / 2)
    one[7] = 9
    with pytest.raises(Violation, match=r"is 9: expected at most 4\.5"):
        judge_columns(one, np.array([0.5]))


def test_correlated_values_fail_and_uncorrelated_values_pass() -> None:
    a, b = np.random.default_rng(6).standard_normal((2, 200))
    judge_unrelated(a, b, "it correlates", "from a to b")
    with pytest.raises(Violation, match=r"it correlates by 0\.6.* from a to b in 200 values: expected no correlation"):
        judge_unrelated(a, a + b, "it correlates", "from a to b")
