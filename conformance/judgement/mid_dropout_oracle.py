"""The oracle of a layer that drops between lora_A and lora_B."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from conformance.cases.operands import Operands
from conformance.judgement.linear_oracle import Expected, LinearOracle
from conformance.numerics import budget
from conformance.numerics.formats import Array


class MidDropoutOracle(LinearOracle):
    """Expected output and gradients of `y = x Wᵀ + b + s·(mask ⊙ (x Aᵀ)) Bᵀ`, with a mask [*, r] of 0 or 1/(1-p).

    The mask multiplies the middle and its error by at most 1/(1-p). So the budget of the adapter's term is that of the
    term without a mask, from x or g times that factor, and the stores of the masked term itself.
    """

    def __init__(self, operands: Operands, *, base: bool = True, mask: Array) -> None:
        super().__init__(operands, base=base)
        self.mask = mask.reshape(-1, mask.shape[-1])
        self.largest = float(self.mask.max(initial=1.0))

    @cached_property
    def y(self) -> Expected:
        """`x Wᵀ + b + s·(mask ⊙ (x Aᵀ)) Bᵀ`, or the update alone without a base."""
        weight, bias = (self.weight, self.bias) if self.base else (None, None)
        terms = {"adapter": self.scale * ((self.x @ self.down.T) * self.mask) @ self.up.T}
        if weight is not None:
            terms["base"] = self.x @ weight.T
        if bias is not None:
            terms["bias"] = np.broadcast_to(bias, terms["adapter"].shape)

        def allowed() -> Array:
            return self._allowed(self.x, weight, bias, self.down, self.up, terms["adapter"])

        return self._expected("y", sum(terms.values(), np.zeros(())), allowed, self.output_dtype, **terms)

    @cached_property
    def dX(self) -> Expected:
        """`g W + s·(mask ⊙ (g B)) A`."""
        weight = self.weight.T if self.base else None
        terms = {"adapter": self.scale * ((self.g @ self.up) * self.mask) @ self.down}
        if weight is not None:
            terms["base"] = self.g @ self.weight

        def allowed() -> Array:
            return self._allowed(self.g, weight, None, self.up.T, self.down.T, terms["adapter"])

        return self._expected("dX", sum(terms.values(), np.zeros(())), allowed, self.operands.dtype, **terms)

    @cached_property
    def dA(self) -> Expected:
        """`s·(mask ⊙ (g B))ᵀ x`."""
        value = self.scale * ((self.g @ self.up) * self.mask).T @ self.x

        def allowed() -> Array:
            found = budget.weight_chain(self.g * self.largest, self.up, self.x, self.scale, self.how)
            return found + self._stores(value)

        return self._expected("dA", value, allowed, self.operands.adapter_dtype)

    @cached_property
    def dB(self) -> Expected:
        """`s·gᵀ (mask ⊙ (x Aᵀ))`."""
        value = self.scale * self.g.T @ ((self.x @ self.down.T) * self.mask)

        def allowed() -> Array:
            found = budget.weight_chain(self.x * self.largest, self.down.T, self.g, self.scale, self.how).T
            return found + self._stores(value)

        return self._expected("dB", value, allowed, self.operands.adapter_dtype)

    def _allowed(
        self, rows: Array, base: Array | None, bias: Array | None, down: Array, up: Array, update: Array
    ) -> Array:
        found = budget.row_chain(rows * self.largest, None, None, down, up, self.scale, self.how) + self._stores(update)
        return found if base is None else found + budget.row_chain(rows, base, bias, down, up, 0.0, self.how)

    def _stores(self, masked: Array) -> Array:
        """The errors of the masked term's own stores: scaled, cast, and twice within a sum."""
        return np.asarray((2 * self.how.adapter_unit + 3 * self.how.unit) * np.abs(masked))
