"""The pattern of an error: the common traits of the wrong elements, in one line that helps a kernel author."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from conformance.numerics.formats import Array

Mask = NDArray[np.bool_]
CLOSE = 2e-2  # relative difference of values that show one relation; a factor so near to 1 shows none


def describe(
    got: Array, want: Array, wrong: Mask, terms: dict[str, Array], mistakes: dict[str, Array] | None = None
) -> str:
    """Say where the wrong elements lie and how they relate to the expected ones.

    Args:
        got, want: the actual and expected values.   wrong: mask of the elements outside the budget.
        terms: the parts of the expected value by formula term.
        mistakes: by its words the value that a known mistake would give.
    """
    count = f"{int(wrong.sum())} of {wrong.size} elements wrong"
    relation = next(_relations(got, want, wrong, terms, mistakes or {}), "")
    return "; ".join(part for part in (count, _where(wrong), relation) if part)


def _relations(
    got: Array, want: Array, wrong: Mask, terms: dict[str, Array], mistakes: dict[str, Array]
) -> Iterator[str]:
    """Every relation that holds between the wrong and the expected elements, the most informative first."""
    seen, right = got[wrong], want[wrong]
    if np.isnan(seen).any():
        yield "NaN" if np.isnan(seen).all() else "some of them NaN"
    if np.isinf(seen).any():
        yield "infinite"
    if seen.size < 2:
        return  # one number agrees with too much by chance
    for words, value in mistakes.items():
        if value.shape == got.shape and _is_it(seen, value[wrong], right):
            yield f"as if {words}"
    if not seen.any():
        yield "zeros"
    with np.errstate(divide="ignore", invalid="ignore"):
        yield from _constant("constant ratio {:.3g}", seen / right)
    for name, part in terms.items():
        if _is_it(seen, right - part[wrong], right):
            yield f"as if the {name} term were missing"
        if _is_it(seen, right + part[wrong], right):
            yield f"as if the {name} term were added twice"
    if got.ndim >= 2 and got.shape[-1] == got.shape[-2] and _close(np.swapaxes(got, -1, -2)[wrong], right):
        yield "transposed"
    for name, part in terms.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = (seen - (right - part[wrong])) / part[wrong]
        yield from _constant(f"the {name} term is {{:.3g}} times what it should be", factor)


def _is_it(seen: Array, mistaken: Array, right: Array) -> bool:
    """Whether a mistake explains the values: they are close to it, and much closer than to the right ones."""
    if not _close(seen, mistaken):
        return False
    return bool(np.linalg.norm(seen - mistaken) <= 0.25 * np.linalg.norm(seen - right))


def _constant(sentence: str, ratios: Array) -> Iterator[str]:
    finite = ratios[np.isfinite(ratios)]
    middle = np.median(finite) if finite.size > 1 else np.nan
    if abs(middle - 1) > CLOSE and _close(finite, np.full_like(finite, middle)):
        yield sentence.format(middle)


def _close(a: Array, b: Array) -> bool:
    return bool(np.allclose(a, b, rtol=CLOSE, atol=1e-6 * max(1.0, float(np.abs(b).max(initial=0)))))


def _where(wrong: Mask) -> str:
    if wrong.all():
        return "all"
    places = []
    for axis in range(wrong.ndim):
        length = wrong.shape[axis]
        others = tuple(a for a in range(wrong.ndim) if a != axis)
        hit = np.flatnonzero(wrong.any(axis=others))
        name = {wrong.ndim - 1: "column", wrong.ndim - 2: "row"}.get(axis, f"axis-{axis} index")
        if len(hit) == length:
            continue
        if len(hit) == 1:
            places.append(f"{name} {hit[0]} of {length}" + (" (the last)" if hit[0] == length - 1 else ""))
        elif hit[-1] - hit[0] + 1 == len(hit):
            tail = " (the tail)" if hit[-1] == length - 1 else ""
            places.append(f"{name}s {hit[0]} to {hit[-1]} of {length}{tail}")
    return "all in " + ", ".join(places) if places else ""
