"""Tests of whether noise follows its law, by bounds on tail probabilities of the normal distribution."""

from __future__ import annotations

import math

import numpy as np

from conformance.judgement.outcomes import require
from conformance.numerics.formats import Array

# Noise that follows the law exceeds each of these bounds at most once in e^RARE = 10^10 times. RARE is compared with
# the exponent of Chernoff's bound: P(a deviation at least as large as the observed one) ≤ e^-exponent.
RARE = 23.1
NEIGHBOURS = 0.5  # the correlation of two columns within a row


def judge_columns(noise: Array, sigma: Array, *, what: str = "noise", spread: float = 0.0) -> None:
    """Require that whole-number noise [M, N] has mean zero and, before rounding, the standard deviations sigma [N].

    Rows must be independent.

    Args:
        spread: the largest relative difference of one key's variance from the law's; see `spread_of`.
    Raises:
        Violation: with the column, the measured and the expected value.
    """
    count = len(noise)
    for column, std in enumerate(map(float, sigma)):
        seen = noise[:, column]
        if std < 1:
            _judge_seldom(seen, std, f"the {what} of column {column}")
            continue
        law = math.sqrt(std**2 + 1 / 12)  # 1/12 is the variance of rounding to whole numbers
        measured, mean = math.sqrt(float((seen**2).mean())), float(seen.mean())
        require(
            _of_mean(mean / law, count, spread) <= RARE,
            f"the {what} of column {column} has a mean of {mean:.4g} in {count} rows: expected zero ± "
            f"{math.sqrt(2 * RARE * (1 + spread) / count) * law:.3g}",
        )
        require(
            _of_squares((measured / law) ** 2, count, spread) <= RARE,
            f"the {what} of column {column} has a deviation of {measured:.4g} in {count} rows: expected {law:.4g}",
        )


def judge_rows(noise: Array, sigma: Array, *, what: str = "noise", spread: float = 0.0) -> None:
    """Require that columns of noise [M, N] correlate by one half within a row and that rows are independent.

    Raises:
        Violation: with the observed correlation.
    """
    count, columns = noise.shape
    scaled = noise / np.sqrt(sigma**2 + 1 / 12)
    covariance = np.full((columns, columns), NEIGHBOURS) + (1 - NEIGHBOURS) * np.eye(columns)
    white = np.linalg.solve(np.linalg.cholesky(covariance), scaled.T).T
    if columns > 1:
        together = scaled.sum(1) / math.sqrt(columns * (1 + (columns - 1) * NEIGHBOURS))
        apart = (scaled - scaled.mean(1, keepdims=True)) / math.sqrt(1 - NEIGHBOURS)
        ratio = float((together**2).mean() / max((apart**2).sum() / (count * (columns - 1)), 1e-9))
        seen = float(np.asarray(np.corrcoef(scaled.T))[~np.eye(columns, dtype=bool)].mean())
        require(
            _of_ratio(ratio, count, count * (columns - 1)) <= RARE,
            f"the {what} of two columns of a row correlates by {seen:.2g} in {count} rows: expected {NEIGHBOURS:g}",
        )
    judge_unrelated(white[: count // 2 * 2 : 2], white[1::2], f"the {what} correlates", "from row to row")
    square = float((white**2).mean())
    require(
        _of_squares(square, white.size, spread) <= RARE,
        f"the {what} has {math.sqrt(square):.3g} times the deviation of its law, in {white.size} values",
    )


def judge_row_to_row(noise: Array, sigma: Array) -> None:
    """Require that noise [M, N] is independent from row to row, in each column whose sigma is at least 1.

    Raises:
        Violation: with the observed correlation.
    """
    for column in np.flatnonzero(np.asarray(sigma) >= 1):
        seen = noise[: len(noise) // 2 * 2, column]
        judge_unrelated(seen[::2], seen[1::2], "the noise correlates", "from row to row")


def judge_unrelated(first: Array, second: Array, what: str, between: str) -> None:
    """Require that two draws with equal standard deviations do not correlate.

    Raises:
        Violation: with the observed correlation.
    """
    a, b = first.reshape(-1), second.reshape(-1)
    seen = float((a * b).mean() / math.sqrt(float((a**2).mean() * (b**2).mean())))
    require(
        _of_product(seen, len(a)) <= RARE, f"{what} by {seen:.3g} {between} in {len(a)} values: expected no correlation"
    )


def spread_of(polynomial_size: int) -> float:
    """The largest relative difference of the variance under one binary key from the law's.

    The variance depends on the number of ones in the key. This number is binomial with mean P/2; Hoeffding's
    inequality bounds it.
    """
    return math.sqrt(2 * RARE / polynomial_size)


def _judge_seldom(noise: Array, sigma: float, what: str) -> None:
    """Require that noise which nearly always rounds to zero is not nonzero more often than its law predicts."""
    chance = math.erfc(0.5 / (sigma * math.sqrt(2))) if sigma else 0.0
    count, off = len(noise), int(np.count_nonzero(noise))
    require(
        _of_count(off / count, chance, count) <= RARE,
        f"{what} is not zero in {off} of {count} rows: expected {chance * count:.3g} with a deviation of {sigma:.3g}",
    )
    most = 8 * sigma + 0.5
    require(bool((np.abs(noise) <= most).all()), f"{what} is {np.abs(noise).max():.4g}: expected at most {most:.3g}")


def _of_squares(ratio: float, count: int, spread: float = 0.0) -> float:
    """The exponent for the mean square of `count` normal values, relative to a variance that may be off by `spread`."""
    ratio = max(ratio / (1 + spread), 1.0) if ratio > 1 else min(ratio / max(1 - spread, 1e-9), 1.0)
    return count / 2 * (ratio - 1 - math.log(ratio)) if ratio else math.inf


def _of_mean(mean: float, count: int, spread: float) -> float:
    """The exponent for the mean of `count` normal values, in standard deviations."""
    return count * mean**2 / 2 / (1 + spread)


def _of_ratio(ratio: float, over: int, under: int) -> float:
    """The exponent for the ratio of two mean squares, of `over` and of `under` normal values."""
    if ratio < 1:
        ratio, over, under = 1 / max(ratio, 1e-9), under, over
    step = (ratio - 1) / (ratio * (1 + over / under))
    return over / 2 * math.log(1 - step) + under / 2 * math.log(1 + step * ratio * over / under)


def _of_product(correlation: float, count: int) -> float:
    """The exponent for the mean product of `count` pairs of independent normal values, in standard deviations."""
    step = (math.sqrt(1 + 4 * correlation**2) - 1) / (2 * correlation) if correlation else 0.0
    return count * (step * correlation + math.log1p(-(step**2)) / 2)


def _of_count(part: float, chance: float, count: int) -> float:
    """The exponent for the share `part` of successes among `count` trials, each with probability `chance`."""
    if part == chance:
        return 0.0
    if chance in (0.0, 1.0):
        return math.inf
    terms = [(part, chance), (1 - part, 1 - chance)]
    return count * sum(p * math.log(p / q) for p, q in terms if p)
