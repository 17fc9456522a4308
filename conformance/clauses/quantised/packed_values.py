"""The numbers that a case packs: blocks of unlike size, zero blocks, and numbers that meet every code."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from conformance.cases import operand_values
from conformance.cases.reproducer_marks import draws_values
from conformance.clauses.quantised.case import PackedCase
from conformance.clauses.quantised.decoded_weight import FP4, NF4
from conformance.numerics.formats import Array, numbers

Numbers = NDArray[np.int64]
APART = 8.0  # the ratio of the largest magnitudes of neighbouring blocks: with it a neighbour's scale shows


@draws_values
def drawn(case: PackedCase) -> dict[str, Array]:
    """The values of a LinearCase, with the weight that the case's content asks for."""
    values = operand_values.floats(case)
    number, parity = blocks_of(case)
    weight = _codes(case, number) if case.content == "codes" else values["weight"]
    weight = weight * np.where(parity, 1.0, 1 / APART)
    if case.content == "zeros" and number.max() > 0:
        weight[number % 3 == case.seed % 3] = 0.0
    return values | {"weight": weight}


def blocks_of(case: PackedCase) -> tuple[Numbers, Numbers]:
    """The number of each element's block [N, K], and a parity that differs between neighbours along both axes."""
    rows, columns = case.blocks
    n, k = case.n, case.k
    if rows == 0:
        number = (np.arange(n * k) // columns).reshape(n, k)
        return number, number % 2
    down, along = np.arange(n)[:, None] // rows, np.arange(k) // columns
    return down * (k // columns) + along, (down + along) % 2


def _codes(case: PackedCase, number: Numbers) -> Array:
    """Numbers near each code's own, in random order; each block has the largest."""
    levels = _levels(case.format)
    random = np.random.default_rng([case.seed, case.k, case.n])
    flat = np.resize(random.permutation(levels), case.n * case.k).reshape(case.n, case.k)
    flat = np.where(case.values == "positive", np.abs(flat), flat)
    for block in np.unique(number):
        rows, columns = np.nonzero(number == block)
        one = random.integers(len(rows))
        flat[rows[one], columns[one]] = levels[np.argmax(np.abs(levels))]
    return np.asarray(flat / np.sqrt(case.k))


def _levels(name: str) -> Array:
    """The numbers of a format's codes, with the largest magnitude 1."""
    if name in ("nf4", "fp4"):
        return np.array(sorted(set(NF4 if name == "nf4" else FP4)))
    if name == "fp8":
        every = numbers(torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn))
        return np.unique(every[np.isfinite(every)]) / 448
    half = {"int8_bitsandbytes": 127.0, "int8_torchao": 127.5, "int4": 7.5, "hqq": 7.5}[name]
    return np.array([-half, *np.arange(-np.floor(half), np.floor(half) + 1)]) / half
