"""The element values of a batch's operands: exact integers, or values of order one."""

from __future__ import annotations

import math

import numpy as np

from conformance.cases.operand_values import ATTEMPTS, weighed
from conformance.cases.reproducer_marks import draws_values
from conformance.clauses.batched.case import BatchedCase
from conformance.clauses.batched.row_adapters import Integers, adapter_index, ranks, scales
from conformance.numerics.formats import Array


@draws_values
def drawn(case: BatchedCase, limit: int) -> dict[str, Array]:
    """The values of x, g, weight, bias, lora_A [L, r, K] and lora_B [L, N, r]; zeros beyond each adapter's rank.

    Args:
        limit: integers up to this are exact in every dtype of the case.
    """
    return _integers(case, limit) if case.values == "integers" else _floats(case)


def _floats(case: BatchedCase) -> dict[str, Array]:
    """Values of order one, so that base, bias and update have similar magnitudes in the output."""
    random = np.random.default_rng([case.seed, case.m, case.k, case.n, case.r, case.adapters])
    size = 1 / np.sqrt(case.k)
    values = {
        "x": random.standard_normal((*case.leading, case.k)),
        "g": random.standard_normal((*case.leading, case.n)),
        "weight": random.standard_normal((case.n, case.k)) * size,
        "bias": random.standard_normal(case.n),
        "lora_A": random.standard_normal((case.adapters, case.r, case.k)) * size,
        "lora_B": random.standard_normal((case.adapters, case.n, case.r)),
    }
    for adapter, (rank, scale) in enumerate(zip(ranks(case), scales(case), strict=True)):
        values["lora_B"][adapter] /= np.sqrt(max(rank, 1)) * abs(scale)
    if case.special in ("nan", "inf"):
        x = values["x"].reshape(-1, case.k)
        x[case.seed % len(x), case.seed % case.k] = float(case.special)
    return _shaped(case, values)


def _shaped(case: BatchedCase, values: dict[str, Array]) -> dict[str, Array]:
    """The values, with equal slices for expanded operands and zeros beyond each adapter's rank."""
    for name, layout in (("x", case.x), ("g", case.g)):
        if layout == "expanded" and case.leading:
            values[name][...] = values[name][:1]
    for adapter, rank in enumerate(ranks(case)):
        values["lora_A"][adapter, rank:] = 0
        values["lora_B"][adapter, :, rank:] = 0
    return values


def _integers(case: BatchedCase, limit: int) -> dict[str, Array]:
    """Integers of -1, 0 and 1 and a few more, made sparser until every intermediate of every plan is exact."""
    index, of_ranks, of_scales = adapter_index(case), ranks(case), scales(case)
    values: dict[str, Array] = {}
    for attempt in range(ATTEMPTS):
        density = 1.0
        while True:
            random = np.random.default_rng([case.seed, case.m, case.k, case.n, case.r, case.adapters, attempt])
            values = _shaped(case, _signs(case, density, random))
            last = density < 1e-3
            largest, decides = _weighed(values, index, of_ranks, of_scales, math.inf if last else limit)
            if largest <= limit or last:
                break
            density *= 0.7
        if decides:
            break  # sparse integers may cancel to a term that is all zeros; the loop then draws again
    return values


def _signs(case: BatchedCase, density: float, random: np.random.Generator) -> dict[str, Array]:
    def draw(*shape: int, keep: float) -> Array:
        signs = random.integers(0, 2, shape) * 2.0 - 1
        return np.asarray(signs * (random.random(shape) < keep), dtype=np.float64)

    return {
        "x": draw(*case.leading, case.k, keep=max(density, 0.5)),
        "weight": draw(case.n, case.k, keep=density) * (2 if case.k < 16 else 1),
        "bias": draw(case.n, keep=1.0) * 3,
        "lora_A": draw(case.adapters, case.r, case.k, keep=density / 2 if case.k > 16 else density),
        "lora_B": draw(case.adapters, case.n, case.r, keep=density / 2 if case.r > 4 else density),
        "g": draw(*case.leading, case.n, keep=max(density, 0.5)),
    }


def _weighed(
    values: dict[str, Array], index: Integers, of_ranks: Integers, of_scales: list[float], limit: float
) -> tuple[float, bool]:
    """The largest magnitude that any plan may store, and whether each used adapter's terms are nonzero."""
    x, g = (values[name].reshape(len(index), values[name].shape[-1]) for name in ("x", "g"))
    weight, bias = values["weight"], values["bias"]
    base, back = x @ weight.T, g @ weight
    largest = max(float(np.abs(each).max(initial=0)) for each in (base, base + bias, back, weight))
    decides = True
    for adapter, (rank, scale) in enumerate(zip(of_ranks, of_scales, strict=True)):
        chosen = index == adapter
        if not chosen.any() or not rank:
            continue
        own = {"x": x[chosen], "g": g[chosen], "weight": weight, "bias": bias}
        own |= {"lora_A": values["lora_A"][adapter, :rank], "lora_B": values["lora_B"][adapter, :, :rank]}
        found, shows = weighed(own, scale, limit)
        largest, decides = max(largest, found), decides and shows
        if largest > limit:
            return largest, False
    return largest, decides
