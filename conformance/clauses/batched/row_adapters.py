"""The adapter of each row, the ranks and the scales of a case."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from conformance.clauses.batched.case import BatchedCase

Integers = NDArray[np.int64]
SCALES = (1.0, 2.0, -1.0, 4.0, -2.0)  # of one adapter after the other, times the case's


def rows_of(case: BatchedCase) -> int:
    """The number of rows of x."""
    return math.prod(case.leading)


def adapter_index(case: BatchedCase) -> Integers:
    """[M], the adapter of each row, -1 for none."""
    rows, adapters = rows_of(case), case.adapters
    random = np.random.default_rng([case.seed, rows, adapters])
    each = np.arange(rows)
    if case.routing.startswith("idle"):
        idle = {"idle-first": 0, "idle-middle": adapters // 2, "idle-last": adapters - 1}[case.routing]
        busy = [adapter for adapter in range(adapters) if adapter != idle] or [-1]
        return random.permutation(np.asarray(busy)[each % len(busy)])
    chosen, other = case.seed % adapters, (case.seed + 1) % adapters
    mixed = random.permutation(each % (adapters + 1)) - 1
    ends = (each == 0) | (each == rows - 1)
    found: dict[str, Integers] = {
        "one": np.full(rows, chosen),
        "none": np.full(rows, -1),
        "sorted": np.sort(each % adapters),
        "alternating": each % adapters,
        "uneven": np.where(each == rows - 1, other, chosen),
        "ends-none": np.where(ends, -1, mixed),
        "mixed": mixed,
    }
    return found[case.routing]


def ranks(case: BatchedCase) -> Integers:
    """[L], the rank of each adapter; one of them is the largest."""
    full = np.full(case.adapters, case.r)
    if case.ranks in ("none", "full"):
        return full
    # r, 1, the half, r - 1, and again, from a place that differs between cases
    steps = np.asarray([case.r, 1, max(1, case.r // 2), max(1, case.r - 1)])
    found = steps[(np.arange(case.adapters) + case.seed) % len(steps)]
    found[case.seed % case.adapters] = case.r
    if case.ranks == "zero":
        found[(case.seed + 1) % case.adapters] = 0
    return found


def scales(case: BatchedCase) -> list[float]:
    """[L], the scale of each adapter."""
    factors = SCALES if case.scales == "different" else (1.0,)
    return [case.scale * factors[adapter % len(factors)] for adapter in range(case.adapters)]
