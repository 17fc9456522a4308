"""The expected output and gradients of an adapted layer on a packed base: those of a linear layer with the weight Ŵ.

Ŵ comes from the stored fields. To the budget of a linear layer come the roundings that a packed base may add, for an
element of x Ŵᵀ, and of g Ŵ alike: ``(4/√3)·u·√Σ(x Ŵ)²`` for Ŵ stored in the compute dtype, whose unit roundoff is u
(that of float32 at least, in which Ŵ is computed); ``u·|x Ŵᵀ|`` for a scale that is rounded, or applied after the
product; and with nested scales ``u₃₂·Σ|Σ x Ŵ|``, the outer sum over the blocks, for a rounded scale of each block.
By the convention `packed_inputs: int8 rows` y gets ``(4/√3)·√Σ(δ Ŵ)²`` too, where δ is half a step of x in int8 and its
rounding to float16 before.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
import torch

from conformance.clauses.quantised.packed_operands import PackedOperands
from conformance.clauses.quantised.packed_values import Numbers, blocks_of
from conformance.judgement.linear_oracle import Expected, LinearOracle
from conformance.numerics.budget import STORE, RowChain
from conformance.numerics.formats import Array, format_of

SINGLE = format_of(torch.float32).unit


class PackedOracle(LinearOracle):
    """Expected values of packed operands, after `packed_base` has put Ŵ into them."""

    operands: PackedOperands

    def _of_storage(self, rows: Array, weight: Array, number: Numbers) -> Array:
        """The roundings that a packed weight adds to `rows · weightᵀ`; `number` [N, K] is each element's block."""
        how = format_of(self.operands.computes)
        unit = max(how.unit, SINGLE)
        correlated = self.how.correlated
        sums = np.abs(rows) @ np.abs(weight).T if correlated else np.sqrt((rows * rows) @ (weight * weight).T)
        allowed = STORE * unit * sums + unit * np.abs(rows @ weight.T) + how.step * np.abs(rows).sum(1)[:, None]
        stored = self.operands.stored
        if stored is not None and stored.nested:
            parts = (rows @ np.where(number == block, weight, 0.0).T for block in np.unique(number))
            allowed = allowed + SINGLE * sum(np.abs(part) for part in parts)
        return np.asarray(allowed)

    def _of_inputs(self) -> Array | float:
        """What the base product moves by if it takes x in float16, rounded to int8 with a scale for each row."""
        if not self.operands.eight_bit_x:
            return 0.0
        half = format_of(torch.float16)
        moved = np.abs(self.x).max(1, initial=0.0)[:, None] / 254 + half.unit * np.abs(self.x) + half.step
        squares = (moved * moved) @ (self.weight * self.weight).T
        product = half.unit * np.abs(self.x @ self.weight.T) + half.step  # which is in float16 in the library
        found: Array = STORE * np.sqrt(squares) + product
        return found

    def _with_storage(self, plain: Expected, allowed: Array) -> Expected:
        if plain.budget is None:  # there are no elements, or all are zero
            return plain
        return dataclasses.replace(plain, budget=plain.budget + allowed.reshape(plain.budget.shape))

    def alone(self) -> tuple[Expected, Expected]:
        """y and dX of the base without an adapter: `x Ŵᵀ + b` and `g Ŵ`."""
        down, up, number = np.zeros((1, self.x.shape[1])), np.zeros((self.g.shape[1], 1)), self._number
        forward = RowChain(self.x, self.weight, self.bias, down, up, 0.0, self.how)
        back = RowChain(self.g, self.weight.T, None, up.T, down.T, 0.0, self.how)
        assert forward.product is not None
        assert back.product is not None
        value = forward.product if self.bias is None else forward.product + self.bias
        terms = {} if self.bias is None else {"base": forward.product, "bias": np.zeros_like(value) + self.bias}
        allowed = forward.budget + self._of_storage(self.x, self.weight, number) + self._of_inputs()
        dX = back.budget + self._of_storage(self.g, self.weight.T, number.T)
        dtype, lead = self.operands.dtype, self.operands.case.leading

        def shaped(rows: Array) -> Array:
            return rows.reshape(*lead, rows.shape[-1])

        named = {name: shaped(term) for name, term in terms.items()}
        return (
            Expected("y", shaped(value), shaped(allowed), self.output_dtype, named),
            Expected("dX", shaped(back.product), shaped(dX), dtype),
        )

    @property
    def _number(self) -> Numbers:
        return blocks_of(self.operands.case)[0]

    @cached_property
    def y(self) -> Expected:
        """`x Ŵᵀ + b + s·(x Aᵀ) Bᵀ`."""
        return self._with_storage(super().y, self._of_storage(self.x, self.weight, self._number) + self._of_inputs())

    @cached_property
    def dX(self) -> Expected:
        """`g Ŵ + s·(g B) A`."""
        return self._with_storage(super().dX, self._of_storage(self.g, self.weight.T, self._number.T))
