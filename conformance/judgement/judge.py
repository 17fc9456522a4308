"""The judgement: a tensor compared with its expected value and budget, and the certificate that the case can fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from conformance.judgement.error_pattern import describe
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive, Violation, require
from conformance.judgement.recording import note
from conformance.numerics.formats import Array, format_of, numbers


def worst(*ratios: float | None) -> float | None:
    """The largest error ÷ budget of several judgements; None if there is none."""
    return max((r for r in ratios if r is not None), default=None)


def judge(actual: Any, expected: Expected) -> float:
    """Compare a tensor with its expected value; return the worst error ÷ budget.

    Raises:
        Violation: if type, shape, dtype or any element is wrong, with the worst element and the error's pattern.
        Inconclusive: if the tensor is right, but zeros, the negated result, or the result without a formula term would
            pass as well.
    """
    what = expected.name
    note(expected=expected)
    require(actual is not None, f"{what} is None: expected {_shape(expected.value)} {expected.dtype}")
    require(isinstance(actual, torch.Tensor), f"{what} is a {type(actual).__name__}: expected a torch.Tensor")
    require(
        tuple(actual.shape) == expected.value.shape,
        f"{what} has shape {list(actual.shape)}: expected {_shape(expected.value)}",
    )
    require(actual.dtype == expected.dtype, f"{what} has dtype {actual.dtype}: expected {expected.dtype}")
    ratio = compare(numbers(actual), expected)
    if expected.certified:
        certify(expected)
    return ratio


def judge_together(
    results: Iterable[tuple[Any, Expected]], by: Callable[[Any, Expected], float] = judge
) -> float | None:
    """Compare the results of one call, as `judge` does; the case decides if one of them can show a wrong result.

    A result without elements, or one that is not certified, shows nothing.

    Args:
        results: tensors with their expected values.   by: what judges each of them.
    Returns:
        The worst error ÷ budget of those that decide; None if there is none.
    Raises:
        Violation: if a result is wrong.
        Inconclusive: if all are right, and none of those that would have to shows what `judge` requires.
    """
    ratios: list[float] = []
    unclear: list[Inconclusive] = []
    shown = False
    for actual, expected in results:
        try:
            ratios.append(by(actual, expected))
            shown |= expected.certified and expected.value.size > 0
        except Inconclusive as reason:
            unclear.append(reason)
    if unclear and not shown:
        raise unclear[0]
    return worst(*ratios)


def compare(got: Array, expected: Expected) -> float:
    """The worst error ÷ budget over all elements.

    Raises:
        Violation: if the ratio exceeds 1, or if there is no budget and any element differs.
    """
    note(expected=expected)
    if got.size == 0:
        return 0.0
    ratios = _ratios(got, expected)
    position = np.unravel_index(int(np.argmax(ratios)), ratios.shape)
    largest = float(ratios[position])
    if largest <= 1:
        return largest
    index = ", ".join(str(int(i)) for i in position)
    budget = "equality required" if expected.budget is None else f"error ÷ budget {largest:.3g}"
    seen, want = _distinct(float(got[position]), float(expected.value[position]))
    lines = [
        f"worst    {expected.name}[{index}]: got {seen}, want {want}     {budget}",
        f"pattern  {describe(got, expected.value, ratios > 1, expected.terms, expected.mistakes)}",
    ]
    raise Violation("\n".join(lines), largest if expected.budget is not None else None)


def _distinct(one: float, other: float) -> tuple[str, str]:
    """Two numbers in as few digits, six or more, as tell them apart."""
    for digits in (6, 9, 17):
        texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts


def _ratios(got: Array, expected: Expected) -> Array:
    want = expected.value
    if expected.budget is None:
        return np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, np.inf)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio: Array = np.abs(got - want) / expected.budget
    if np.isfinite(ratio).all():
        return ratio
    same = (got == want) | (np.isnan(got) & np.isnan(want)) | _overflowed(got, want, expected)
    return np.where(same, 0.0, np.where(np.isfinite(ratio), ratio, np.inf))


def _overflowed(got: Array, want: Array, expected: Expected) -> Array:
    """Where an infinity is correct: a value within the budget exceeds the largest finite number of the dtype."""
    reach = np.abs(want) + np.asarray(expected.budget)
    beyond = reach > format_of(expected.dtype).largest
    return np.asarray(np.isinf(got) & (np.sign(got) == np.sign(want)) & beyond)


def certify(expected: Expected) -> None:
    """Check that wrong results would fail on this case.

    Raises:
        Inconclusive: if all zeros, the negated result, or the result without one of its terms is within budget.
    """
    value = expected.value
    if value.size == 0:
        return
    parts = expected.terms.items()
    impostors: Iterator[tuple[str, Array]] = itertools.chain(
        (("zeros", np.zeros(value.shape)), ("the negated result", -value)),
        ((f"the result without its {term} term", value - part) for term, part in parts),
    )
    for name, impostor in impostors:
        if not (_ratios(impostor, expected) > 1).any():
            raise Inconclusive(f"{name} would pass as {expected.name}")


def representable(expected: Expected) -> bool:
    """Whether the exact result fits its dtype."""
    return bool(np.all(np.abs(expected.value) <= format_of(expected.dtype).largest))


def _shape(value: Array) -> list[int]:
    return list(value.shape)
