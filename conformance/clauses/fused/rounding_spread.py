"""The errors that roundings inside `lora_mlp` cause in y and every gradient, beyond those of one linear layer.

Each intermediate v of the block (gate, up, d_h) is the output of a chain ``t ↦ t Wᵀ + b + s·(t Aᵀ) Bᵀ`` with the
budget `budget.row_chain`. A result depends on v by its derivative J, a matrix for each token. Roundings reach the
result in two ways, and both errors are added:

- A rounding before v (of t Aᵀ, or of a scaled or cast t) changes several elements of v at once. Its budget counts
  those stores and that sum, with J B in place of B (`shared`).
- Roundings in each element of v (its sums, its stores) are independent: √Σ (own · J)².

The activation adds its evaluation error (`activation_curves`), two stores of f and one of h, independent in each
element, and so does its slope. Second-order errors are bounded by half of ``|f″|·own²`` and by the products of two
errors.
"""

from __future__ import annotations

import numpy as np

from conformance.clauses.fused import activation_curves
from conformance.clauses.fused.formula import Chain, Chains, Lifts
from conformance.numerics import budget
from conformance.numerics.budget import Rounding
from conformance.numerics.formats import Array, accumulator_unit


def allowed(chain: Chain, rows: Array, how: Rounding) -> Array:
    """Budget of one chain's output."""
    return budget.row_chain(rows, chain.weight, chain.bias, chain.down, chain.up, chain.scale, how)


def shared(rows: Array, down: Array, ups: Array, scale: float, how: Rounding) -> Array:
    """The errors of ``s·(t Aᵀ) Bᵀ`` that come from t Aᵀ, A and B, and are common to the elements of a row.

    Args:
        rows: [M, K].   down: A [r, K].   ups: a B for each row, [M, P, r].
    Returns:
        [M, P].
    """
    each, s = rows[:, None], abs(scale)
    turned = ups.swapaxes(1, 2)
    downs, sizes = how.sizes(down.T), how.sizes(turned)
    through = how.rooted(how.sizes(each @ down.T) @ sizes)
    stores = through + np.maximum(through, how.rooted(how.sizes(each) @ downs @ sizes))
    if how.adapter_dtype != how.dtype:
        stores = stores + how.rooted(how.sizes(each) @ how.sizes((ups @ down).swapaxes(1, 2)))
    summed = how.accumulation(rows.shape[1]) * (np.abs(each) @ np.abs(down).T @ np.abs(turned))
    return np.asarray(s * (how.adapter_unit * stores + summed))[:, 0]


def independent(errors: Array, *maps: Array) -> Array:
    """`√Σ (e·t)²` for errors that do not depend on each other."""
    total = errors**2
    for factor in maps:
        total = total @ factor**2
    return np.asarray(np.sqrt(total))


class Spread:
    """The elementwise errors of a block's intermediates, and the errors of linear functions of them."""

    def __init__(self, chains: Chains, between: Lifts, x: Array, g: Array, activation: str, how: Rounding) -> None:
        self.chains, self.between, self.x, self.g, self.how = chains, between, x, g, how
        self.own = {name: allowed(chains[name], x, how) for name in between.inner}
        self.own_d_h = allowed(chains["down"].turned, g, how)
        first = next(iter(between.inner))
        t, near = between.inner[first], self.own[first]
        self.first, self.gated = first, len(between.inner) == 2
        unit, fine = how.unit, accumulator_unit(how.dtype)
        f, slope = activation_curves.value(t, activation), activation_curves.slope(t, activation)
        bend = activation_curves.bend(t, activation, near)
        up = between.inner["up"] if self.gated else np.ones_like(t)
        near_up = self.own["up"] if self.gated else np.zeros_like(t)
        self.f, self.slope, self.up = f, slope, up
        # errors of h = f·up beyond the first-order effect of those of gate and up
        steep = np.abs(slope) + bend * near
        stored = unit * (2 * np.abs(f * up) + np.abs(between.h)) + how.step * (2 + np.abs(up))
        second = 0.5 * bend * near**2 * np.abs(up) + steep * near * near_up
        self.h = stored + second + activation_curves.value_error(t, activation, fine) * np.abs(up)
        # errors of d_first = d_h·up·f′ and d_up = d_h·f, likewise
        d_h, near_d = between.d_h, self.own_d_h
        self.second = activation_curves.second(t, activation) * d_h * up
        stores = unit * (3 * np.abs(d_h * up) * np.abs(slope) + np.abs(d_h * up * slope)) + how.step * (3 + np.abs(d_h))
        second = bend * near * (near_d * np.abs(up) + near_up * np.abs(d_h)) + steep * near_d * near_up
        third = activation_curves.slope_rest(t, activation, near) * np.abs(d_h * up)
        self.d_first = stores + second + third + activation_curves.slope_error(t, activation, fine) * np.abs(d_h * up)
        stores = unit * 3 * np.abs(d_h * f) + how.step * (2 + np.abs(d_h))
        second = 0.5 * bend * near**2 * np.abs(d_h) + steep * near * near_d
        self.d_up = stores + second + activation_curves.value_error(t, activation, fine) * np.abs(d_h)

    def reaching(self, chain: Chain, rows: Array, own: Array, maps: Array) -> Array:
        """The error [M, P] of `maps` [M, P, N] applied to a chain's output, caused by the errors of that output."""
        alone = np.sqrt((own**2)[:, None] @ (maps**2).swapaxes(1, 2))[:, 0]
        return shared(rows, chain.down, maps @ chain.up, chain.scale, self.how) + alone

    def of_h(self, reading: Array) -> Array:
        """Error of ``h readingᵀ``, reading [P, I]: [M, P]."""
        tangent = self.slope * self.up
        found = self.reaching(self.chains[self.first], self.x, self.own[self.first], tangent[:, None] * reading)
        if self.gated:
            found = found + self.reaching(self.chains["up"], self.x, self.own["up"], self.f[:, None] * reading)
        return found + independent(self.h, reading.T)

    def of_h_itself(self) -> Array:
        """Error of each element of h."""
        found = np.abs(self.slope * self.up) * self.own[self.first] + self.h
        return found + np.abs(self.f) * self.own["up"] if self.gated else found

    def of_d_inner(self, readings: dict[str, Array]) -> Array:
        """Error of ``Σ d_name reading_nameᵀ`` over gate and up, readings [P, I]: [M, P]."""
        none = np.zeros_like(next(iter(readings.values())))
        first, up = readings.get(self.first, none), readings.get("up", none) if self.gated else none
        d_h = self.between.d_h[:, None]
        by_d_h = (self.slope * self.up)[:, None] * first + self.f[:, None] * up
        found = self.reaching(self.chains["down"].turned, self.g, self.own_d_h, by_d_h)
        by_first = self.second[:, None] * first + d_h * self.slope[:, None] * up
        found = found + self.reaching(self.chains[self.first], self.x, self.own[self.first], by_first)
        if self.gated:
            by_up = d_h * self.slope[:, None] * first
            found = found + self.reaching(self.chains["up"], self.x, self.own["up"], by_up)
            found = found + independent(self.d_up, up.T)
        return found + independent(self.d_first, first.T)

    def of_d_inner_itself(self, name: str) -> Array:
        """Error of each element of d_gate or d_up."""
        if name == self.first:
            found = (
                np.abs(self.slope * self.up) * self.own_d_h + np.abs(self.second) * self.own[self.first] + self.d_first
            )
            return found + np.abs(self.between.d_h * self.slope) * self.own["up"] if self.gated else found
        return np.asarray(
            np.abs(self.f) * self.own_d_h + np.abs(self.between.d_h * self.slope) * self.own[self.first] + self.d_up
        )
