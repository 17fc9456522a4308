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
from functools import cached_property

import numpy as np
import torch

from conformance.numerics.formats import Array, accumulator_unit, format_of

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
        return self.stored_of(*map(self.sizes, factors))

    def sizes(self, factor: Array) -> Array:
        """A factor's elements as `stored_of` adds them up: squares, or magnitudes."""
        return np.abs(factor) if self.correlated else factor * factor

    def stored_of(self, *sizes: Array) -> Array:
        """`stored` of factors whose `sizes` are at hand."""
        product = sizes[0].dot(sizes[1]) if len(sizes) == 2 else np.linalg.multi_dot(sizes)
        return self.rooted(product)

    def rooted(self, sums: Array) -> Array:
        """What products of `sizes` come to."""
        return np.asarray(STORE * (sums if self.correlated else np.sqrt(sums)))

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


class RowChain:
    """`rows·baseᵀ + bias + scale·(rows·downᵀ)·upᵀ`: the forward pass, and dX with g for rows.

    Attributes:
        update: the adapter's term.   product: the base's, None where there is none.
    """

    def __init__(
        self, rows: Array, base: Array | None, bias: Array | None, down: Array, up: Array, scale: float, how: Rounding
    ) -> None:
        """Compute the terms.

        Args:
            rows: [M, K].   base: [N, K] or None.   bias: [N] or None.   down: [r, K].   up: [N, r].
        """
        self.rows, self.base, self.bias, self.down, self.up, self.scale, self.how = (
            rows,
            base,
            bias,
            down,
            up,
            scale,
            how,
        )
        self.middle = rows @ down.T
        self.update = scale * (self.middle @ up.T)
        self.product = None if base is None else rows @ base.T

    @cached_property
    def budget(self) -> Array:
        """[M, N], the largest absolute error of any allowed plan."""
        rows, base, bias, down, up, how = self.rows, self.base, self.bias, self.down, self.up, self.how
        s = abs(self.scale)
        width, rank = down.shape[1], down.shape[0]
        joined, update = up @ down, self.update
        magnitudes, wide = np.abs(rows), np.abs(up)
        absolute = magnitudes @ np.abs(down).T @ wide.T
        accumulated = s * (how.accumulation(width) + how.accumulation(rank)) * absolute
        final = 2 * how.adapter_unit * np.abs(update)

        sizes = magnitudes if how.correlated else how.sizes(rows)
        ups = how.sizes(up.T)
        through_middle, through_joined = (
            how.stored_of(how.sizes(self.middle), ups),
            how.stored_of(sizes, how.sizes(joined.T)),
        )
        # scale may be stored into S or B, into x, or into A; x is stored once more where the adapter's dtype differs
        scaled = np.maximum.reduce([through_middle, through_joined, how.stored_of(sizes, how.sizes(down.T), ups)])
        cast = through_joined if how.adapter_dtype != how.dtype else 0.0
        stores = s * how.adapter_unit * (np.maximum(through_middle + scaled, 2 * through_joined) + cast)
        spread = s * wide.sum(1)[None, :]  # how a step in S reaches the result
        carried = spread + s * magnitudes.sum(1)[:, None] + 4
        lost = how.step * carried + how.underflow(width) * (1 + spread) + how.underflow(rank) * s
        product = self.product
        if base is None or product is None:
            return np.asarray(accumulated + stores + final + how.unit * np.abs(update) + lost)

        with_bias = product if bias is None else product + bias
        result = with_bias + update
        merged = base + self.scale * joined
        onto = s * absolute + magnitudes @ np.abs(base).T + (0.0 if bias is None else np.abs(bias))
        accumulated = (how.accumulation(width) + how.accumulation(rank)) * onto
        merging = s * how.adapter_unit * (2 * through_joined + cast)
        merging = merging + how.unit * how.stored_of(sizes, how.sizes(merged.T))
        stores = np.maximum(stores, merging)
        partial = np.maximum(np.abs(with_bias), np.abs(product + update))  # whichever the bias is added to
        final = final + how.unit * (np.abs(product) + partial + np.abs(update) + np.abs(result))
        return np.asarray(accumulated + stores + final + lost)


def row_chain(
    rows: Array, base: Array | None, bias: Array | None, down: Array, up: Array, scale: float, how: Rounding
) -> Array:
    """The budget of a `RowChain`."""
    return RowChain(rows, base, bias, down, up, scale, how).budget


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
    beside, within = np.abs(right), np.abs(middle)
    absolute = (np.abs(left) @ within).T @ beside
    accumulated = s * (how.accumulation(width) + how.accumulation(tokens)) * absolute

    middles, rights = how.sizes(middle.T), beside if how.correlated else how.sizes(right)
    first = how.stored_of(how.sizes(product.T), rights)  # (left·middle) stored, then scaled or cast and stored again
    operand = how.stored_of(middles, how.sizes(left.T), rights)  # scale·left or a cast of it stored
    joined = how.stored_of(middles, how.sizes(outer))  # leftᵀ·right stored, as autograd does through a merged weight
    casts = (first + operand) if how.adapter_dtype != how.dtype else 0.0
    unit = max(how.unit, how.adapter_unit)
    stores = s * np.maximum(
        how.adapter_unit * (first + np.maximum.reduce([first, operand, joined]) + casts), unit * 2 * joined
    )
    final = (2 * how.adapter_unit + unit) * np.abs(result)
    spread = s * beside.sum(0)[None, :]
    carried = spread + s * within.sum(0)[:, None] + 4
    lost = how.step * carried + how.underflow(width) * spread + how.underflow(tokens) * max(s, 1.0)
    return np.asarray(accumulated + stores + final + lost)


def summed(values: Array, how: Rounding) -> Array:
    """Budget of a sum over tokens, `Σ_m values[m]`: the bias gradient, stored once more if a batch is summed apart."""
    return np.asarray(
        how.accumulation(len(values)) * np.abs(values).sum(0) + 2 * how.unit * np.abs(values.sum(0)) + 2 * how.step
    )
