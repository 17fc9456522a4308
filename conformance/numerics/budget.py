"""The error budget: how far a correct implementation may be from the exact result, element by element.

There is no tolerance to set. A plan is one order of computing a product chain, with its intermediates. For each
allowed plan the budget bounds the rounding errors on the operands of the case; the largest bound is the budget:

- *stores*: an intermediate v that the plan stores with unit roundoff u, and that reaches the result with weight t,
  adds `(4/√3)·u·√Σ(v·t)²`; the final stores add `u·|v|`; each store adds the format's smallest step, times |t|;
- *accumulation* over k terms adds `6·√k·u_acc` times the sum of absolute products, and k of the accumulator's
  smallest steps, which bound the error among subnormal numbers. An in-place product such as `Y += X Wᵀ` accumulates
  onto Y: its roundings are relative to Y too, which counts as one more product.

In float64 the oracle's own sums round like the target's, so the difference may have twice the error of either.

Where operands are equal along the reduction, their roundings are equal too: errors add up instead of averaging out.
Accumulation then adds `k·u_acc`, and stores add absolutely.
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
    """How a chain is rounded: the base in `dtype`, the adapter in `adapter_dtype`; errors add up where `correlated`."""

    dtype: torch.dtype
    adapter_dtype: torch.dtype
    correlated: bool = False

    def accumulation(self, k: int) -> float:
        """Relative error of a sum of k products."""
        unit = max(accumulator_unit(self.dtype), accumulator_unit(self.adapter_dtype))
        if unit == format_of(torch.float64).unit:
            unit *= 2  # the oracle's sums are in float64 too
        averaged = ACCUMULATE * math.sqrt(k)
        return unit * (max(k, averaged) if self.correlated else averaged)

    def stored(self, *factors: Array) -> Array:
        """`√Σ(v·t)²` over a product of matrices, or `Σ|v·t|` for correlated operands."""
        return self.stored_of(*map(self.sizes, factors))

    def sizes(self, factor: Array) -> Array:
        """The elements of a factor as `stored_of` sums them: squares, or magnitudes for correlated operands."""
        return np.abs(factor) if self.correlated else factor * factor

    def stored_of(self, *sizes: Array) -> Array:
        """`stored`, given the `sizes` of the factors."""
        product = sizes[0].dot(sizes[1]) if len(sizes) == 2 else np.linalg.multi_dot(sizes)
        return self.rooted(product)

    def rooted(self, sums: Array) -> Array:
        """The error bound from products of `sizes`: their square roots, or the products where correlated."""
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
    """`rows·baseᵀ + bias + scale·(rows·downᵀ)·upᵀ`: the forward pass, or dX where the rows are those of g.

    Attributes:
        update: the adapter's term.   product: the base term; None without a base.
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
        # a plan may multiply the scale into S or B, into x, or into A, and stores x again in an adapter's other dtype
        scaled = np.maximum.reduce([through_middle, through_joined, how.stored_of(sizes, how.sizes(down.T), ups)])
        cast = through_joined if how.adapter_dtype != how.dtype else 0.0
        stores = s * how.adapter_unit * (np.maximum(through_middle + scaled, 2 * through_joined) + cast)
        spread = s * wide.sum(1)[None, :]  # the weight with which one step of S reaches the result
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
        partial = np.maximum(np.abs(with_bias), np.abs(product + update))  # the bias is added first or last
        final = final + how.unit * (np.abs(product) + partial + np.abs(update) + np.abs(result))
        return np.asarray(accumulated + stores + final + lost)


def row_chain(
    rows: Array, base: Array | None, bias: Array | None, down: Array, up: Array, scale: float, how: Rounding
) -> Array:
    """The budget of a `RowChain`."""
    return RowChain(rows, base, bias, down, up, scale, how).budget


def weight_chain(
    left: Array, middle: Array, right: Array, scale: float, how: Rounding, *, gathered: bool = False
) -> Array:
    """Budget of `scale·(left·middle)ᵀ·right`: dA with (g, B, x), and dBᵀ with (x, Aᵀ, g).

    Args:
        left: [M, P].   middle: [P, r].   right: [M, Q].
        gathered: whether a plan may copy the adapter, or its merged weight, for each token: then the gradient of each
            copy is stored, and autograd sums them one after the other in the adapter's dtype (`sums_in_turn`).
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
    first = how.stored_of(how.sizes(product.T), rights)  # left·middle, stored, then scaled or cast and stored again
    operand = how.stored_of(middles, how.sizes(left.T), rights)  # scale·left, or its cast, stored
    joined = how.stored_of(middles, how.sizes(outer))  # leftᵀ·right stored, as autograd does through a merged weight
    casts = (first + operand) if how.adapter_dtype != how.dtype else 0.0
    copies: Array | float = 0.0
    if gathered and how.adapter_unit > accumulator_unit(how.adapter_dtype):  # else accumulation bounds these sums
        sums = sums_in_turn(how.sizes(product.T) @ rights, how.sizes(product.T @ right), tokens, how)
        outers = sums_in_turn(how.sizes(left.T) @ rights, how.sizes(outer), tokens, how)
        copies = np.maximum(first + how.rooted(sums), operand + how.rooted(middles @ outers))
    unit = max(how.unit, how.adapter_unit)
    stores = s * np.maximum(
        how.adapter_unit * (first + np.maximum.reduce([first, operand, joined]) + copies + casts), unit * 2 * joined
    )
    final = (2 * how.adapter_unit + unit) * np.abs(result)
    spread = s * beside.sum(0)[None, :]
    carried = spread + s * within.sum(0)[:, None] + 4
    lost = how.step * carried + how.underflow(width) * spread + how.underflow(tokens) * max(s, 1.0)
    return np.asarray(accumulated + stores + final + lost)


def sums_in_turn(terms: Array, total: Array, count: int, how: Rounding) -> Array:
    """The `sizes` of all partial sums of `count` values that are added one after the other.

    The sum of the first j of n values, in whatever order, has on average the square
    ``j(n-j)/(n(n-1))·Σv² + j(j-1)/(n(n-1))·(Σv)²``; over all j that is ``(n+1)/6·(Σv² + 2·(Σv)²)``. Where the values
    are correlated, magnitudes add up: ``j/n·Σ|v|``, over all j ``(n+1)/2·Σ|v|``.

    Args:
        terms: the `sizes` of the values, summed.   total: those of their sum.
    """
    return (count + 1) / 2 * terms if how.correlated else (count + 1) / 6 * (terms + 2 * total)


def merged_weight(base: Array, down: Array, up: Array, scale: float, how: Rounding) -> Array:
    """[N, K], the budget of `W + scale·up·down`: a merged weight, or the update of one where the base is zero."""
    s, rank = abs(scale), down.shape[0]
    update = scale * (up @ down)
    absolute = s * (np.abs(up) @ np.abs(down))
    # either B A is accumulated onto W; or B A, its scaled form and the sum are each stored
    accumulated = how.accumulation(rank) * (absolute + np.abs(base))
    stores = how.unit * (2 * np.abs(update) + np.abs(base + update) + 2 * how.stored(up, down) * s)
    return np.asarray(accumulated + stores + 4 * max(s, 1) * how.step)


def unmerged_weight(base: Array, update: Array, scale: float, *dtypes: torch.dtype) -> Array:
    """[N, K], the budget of a weight of these dtypes that unmerging restores: both ways store `B A`, ΔW and the sum."""
    unit, step = (max(getattr(format_of(dtype), part) for dtype in dtypes) for part in ("unit", "step"))
    return np.asarray(2 * unit * (np.abs(base) + np.abs(update)) + 4 * max(abs(scale), 1) * step)


def moved(before: Array, change: Array, dtype: torch.dtype) -> Array:
    """The budget of `before - change` after a step of SGD: the gradient, the change and the difference are stored."""
    how = format_of(dtype)
    return np.asarray(3 * (how.unit * (np.abs(before) + np.abs(change)) + how.step))


def summed(values: Array, how: Rounding) -> Array:
    """Budget of a sum over tokens, `Σ_m values[m]`: the bias gradient, with one more store for a separate batch sum."""
    return np.asarray(
        how.accumulation(len(values)) * np.abs(values).sum(0) + 2 * how.unit * np.abs(values.sum(0)) + 2 * how.step
    )
