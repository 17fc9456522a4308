"""The error budget: how far a right implementation may be from the exact result, element by element.

There is no tolerance to set. For each allowed plan of computing a product chain the budget adds what that plan's
roundings can do to the very operands at hand, and the largest plan counts:

- *stores*: an intermediate v that the plan stores with unit roundoff u, and that reaches the result with weight t,
  adds `(4/√3)·u·√Σ(v·t)²`; the final stores add `u·|v|`; each store adds the format's smallest step, carried by |t|;
- *accumulation* over k terms: `6·√k·u_acc` times the summed absolute products, and k of the accumulator's smallest
  steps, which is what remains of it among subnormal numbers. A sum may be accumulated onto what it is added to, as
  `Y += X Wᵀ` is by a product in place: then its roundings are relative to that too, which counts as one more product.

In float64 the oracle's own sums round like the target's, so that a difference has twice the error of either.

Where operands are equal along the reduction their roundings are equal too, so errors add instead of averaging out:
`k·u_acc`, and stores add absolutely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from conformance.numerics import Array, accumulator_unit, format_of

STORE = 4 / math.sqrt(3)
ACCUMULATE = 6.0


@dataclass(frozen=True)
class Rounding:
    """How a chain is rounded: base in `dtype`, adapter in `adapter_dtype`; `correlated` operands add up."""

    dtype: torch.dtype
    adapter_dtype: torch.dtype
    correlated: bool = False

    def accumulation(self, k: int) -> float:
        """Relative error of a sum of k products."""
        unit = max(accumulator_unit(self.dtype), accumulator_unit(self.adapter_dtype))
        if unit == format_of(torch.float64).unit:
            unit *= 2  # the oracle's sums are such sums too
        averaged = ACCUMULATE * math.sqrt(k)
        return unit * (max(k, averaged) if self.correlated else averaged)

    def stored(self, *factors: Array) -> Array:
        """`√Σ(v·t)²` over a product of matrices, or `Σ|v·t|` for correlated operands."""
        if self.correlated:
            return np.asarray(STORE * np.linalg.multi_dot([np.abs(f) for f in factors]))
        product = np.linalg.multi_dot([f * f for f in factors])
        return np.asarray(STORE * np.sqrt(product))

    def underflow(self, k: int) -> float:
        """Absolute error of a sum of k products that are subnormal in the accumulator."""
        wide = torch.float64 in (self.dtype, self.adapter_dtype)
        return k * format_of(torch.float64 if wide else torch.float32).step

    @property
    def unit(self) -> float:
        return format_of(self.dtype).unit

    @property
    def adapter_unit(self) -> float:
        return format_of(self.adapter_dtype).unit

    @property
    def step(self) -> float:
        return max(format_of(self.dtype).step, format_of(self.adapter_dtype).step)


def row_chain(
    rows: Array, base: Array | None, bias: Array | None, down: Array, up: Array, scale: float, how: Rounding
) -> Array:
    """Budget of `rows·baseᵀ + bias + scale·(rows·downᵀ)·upᵀ`: the forward pass, and dX with g for rows.

    Args:
        rows: [M, K].   base: [N, K] or None.   bias: [N] or None.   down: [r, K].   up: [N, r].
    Returns:
        [M, N], the largest absolute error of any allowed plan.
    """
    s = abs(scale)
    width, rank = down.shape[1], down.shape[0]
    middle, joined = rows @ down.T, up @ down
    update = scale * (middle @ up.T)
    absolute = np.abs(rows) @ np.abs(down).T @ np.abs(up).T
    accumulated = s * (how.accumulation(width) + how.accumulation(rank)) * absolute
    final = 2 * how.adapter_unit * np.abs(update)

    through_middle, through_joined = how.stored(middle, up.T), how.stored(rows, joined.T)
    # scale may be stored into S or B, into x, or into A; x is stored once more where the adapter's dtype differs
    scaled = np.maximum.reduce([through_middle, through_joined, how.stored(rows, down.T, up.T)])
    cast = through_joined if how.adapter_dtype != how.dtype else 0.0
    stores = s * how.adapter_unit * (np.maximum(through_middle + scaled, 2 * through_joined) + cast)
    spread = s * np.abs(up).sum(1)[None, :]  # how a step in S reaches the result
    carried = spread + s * np.abs(rows).sum(1)[:, None] + 4
    lost = how.step * carried + how.underflow(width) * (1 + spread) + how.underflow(rank) * s
    if base is None:
        return np.asarray(accumulated + stores + final + how.unit * np.abs(update) + lost)

    product = rows @ base.T
    with_bias = product if bias is None else product + bias
    result = with_bias + update
    merged = base + scale * joined
    onto = s * absolute + np.abs(rows) @ np.abs(base).T + (0.0 if bias is None else np.abs(bias))
    accumulated = (how.accumulation(width) + how.accumulation(rank)) * onto
    merging = s * how.adapter_unit * (2 * through_joined + cast) + how.unit * how.stored(rows, merged.T)
    stores = np.maximum(stores, merging)
    partial = np.maximum(np.abs(with_bias), np.abs(product + update))  # whichever the bias is added to
    final = final + how.unit * (np.abs(product) + partial + np.abs(update) + np.abs(result))
    return np.asarray(accumulated + stores + final + lost)


def weight_chain(left: Array, middle: Array, right: Array, scale: float, how: Rounding) -> Array:
    """Budget of `scale·(left·middle)ᵀ·right`: dA with (g, B, x), and dBᵀ with (x, Aᵀ, g).

    Args:
        left: [M, P].   middle: [P, r].   right: [M, Q].
    Returns:
        [r, Q], the largest absolute error of any allowed plan.
    """
    s = abs(scale)
    tokens, width = left.shape
    product = left @ middle
    outer = left.T @ right
    result = scale * (product.T @ right)
    absolute = (np.abs(left) @ np.abs(middle)).T @ np.abs(right)
    accumulated = s * (how.accumulation(width) + how.accumulation(tokens)) * absolute

    first = how.stored(product.T, right)  # (left·middle) stored, then scaled or cast and stored again
    operand = how.stored(middle.T, left.T, right)  # scale·left or a cast of it stored
    joined = how.stored(middle.T, outer)  # leftᵀ·right stored, as autograd does through a merged weight
    casts = (first + operand) if how.adapter_dtype != how.dtype else 0.0
    unit = max(how.unit, how.adapter_unit)
    stores = s * np.maximum(
        how.adapter_unit * (first + np.maximum.reduce([first, operand, joined]) + casts), unit * 2 * joined
    )
    final = (2 * how.adapter_unit + unit) * np.abs(result)
    spread = s * np.abs(right).sum(0)[None, :]
    carried = spread + s * np.abs(middle).sum(0)[:, None] + 4
    lost = how.step * carried + how.underflow(width) * spread + how.underflow(tokens) * max(s, 1.0)
    return np.asarray(accumulated + stores + final + lost)


def summed(values: Array, how: Rounding) -> Array:
    """Budget of a sum over tokens, `Σ_m values[m]`: the bias gradient, stored once more if a batch is summed apart."""
    return np.asarray(
        how.accumulation(len(values)) * np.abs(values).sum(0) + 2 * how.unit * np.abs(values.sum(0)) + 2 * how.step
    )
