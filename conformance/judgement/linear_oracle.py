"""The oracle: expected values by closed formulas in NumPy float64, without autograd, each with its budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from conformance.cases.operands import Operands
from conformance.numerics import budget
from conformance.numerics.budget import RowChain
from conformance.numerics.formats import Array


@dataclass(frozen=True)
class Expected:
    """The expected value of one tensor.

    Attributes:
        name: its name in messages (`y`, `dA`).
        value: exact result, float64.
        budget: largest allowed absolute error per element; None if equality is required.
        dtype: the tensor's dtype.
        terms: for the certificate, the contribution of each formula term to the value; the result without any one
            term must be outside the budget, otherwise the case is inconclusive.
        mistakes: for the error's pattern, by its words ("dropout had not acted") the value that a known mistake gives.
        certified: False for degenerate cases, whose expected result may be zero.
    """

    name: str
    value: Array
    budget: Array | None
    dtype: torch.dtype
    terms: dict[str, Array] = field(default_factory=dict)
    certified: bool = True
    mistakes: dict[str, Array] = field(default_factory=dict)


class LinearOracle:
    """Expected output and gradients of `y = x Wᵀ + b + s·(x Aᵀ) Bᵀ` for given operands.

    With a dropout `mask` [*, K] or [*, N] (0 or 1/(1-p) per element, at the case's dropout position), `pre` replaces
    x by mask·x on the adapter path, and `post` multiplies the adapter's output by the mask.
    """

    def __init__(self, operands: Operands, *, base: bool = True, mask: Array | None = None) -> None:
        self.operands, self.base, self.how = operands, base, operands.rounding
        values = operands.values
        self.x, self.g = operands.rows("x"), operands.rows("g")
        self.weight, self.bias = values["weight"], values.get("bias")
        self.down, self.up, self.scale = values["lora_A"], values["lora_B"], operands.scale
        rows = None if mask is None else mask.reshape(-1, mask.shape[-1])
        position = operands.case.position
        self.output_dtype = operands.computed_in if base else operands.dtype
        self.pre = rows if rows is not None and position == "pre" else None
        self.post = rows if rows is not None and position == "post" else None
        self.dropped_x = self.x if self.pre is None else self.x * self.pre
        self.dropped_g = self.g if self.post is None else self.g * self.post

    def _expected(
        self, name: str, rows: Array, allowed: Callable[[], Array], dtype: torch.dtype, **terms: Array
    ) -> Expected:
        leading = self.operands.case.leading
        shape = (*leading, rows.shape[-1]) if name in ("y", "dX") else rows.shape
        special, operands = self.operands.case.special, self.operands
        degenerate = operands.degenerate or (special == "zero-B" and name in ("y", "dX", "dA"))
        if degenerate:  # the update is zero by construction; the other terms must still contribute
            terms = {term: value for term, value in terms.items() if term != "adapter"}
        if special in ("identity", "overflow-before-scale"):  # W is zero
            terms.pop("base", None)
        silent = special == "zero-x" or (degenerate and not terms)
        return Expected(
            name,
            rows.reshape(shape),
            None if operands.exact or (silent and not rows.any()) else allowed().reshape(shape),
            dtype,
            {term: value.reshape(shape) for term, value in terms.items()} if len(terms) > 1 else {},
            certified=not silent,
        )

    @cached_property
    def y(self) -> Expected:
        """`x Wᵀ + b + s·(x Aᵀ) Bᵀ`, or the update alone without a base."""
        weight, bias = (self.weight, self.bias) if self.base else (None, None)
        chain = RowChain(self.dropped_x, weight, bias, self.down, self.up, self.scale, self.how)
        update = chain.update if self.post is None else chain.update * self.post
        terms = {"adapter": update}
        if weight is not None and chain.product is not None:
            terms["base"] = chain.product if self.pre is None else self.x @ weight.T
        if bias is not None:
            terms["bias"] = np.broadcast_to(bias, update.shape)

        def allowed() -> Array:
            found = chain.budget
            if self.post is not None:  # the mask multiplies the update's error, not the base's
                alone = budget.row_chain(self.dropped_x, None, None, self.down, self.up, self.scale, self.how)
                found = found + alone * self.post
            if self.pre is not None and weight is not None:
                found = found + budget.row_chain(self.x, weight, bias, self.down, self.up, 0.0, self.how)
            return found

        return self._expected("y", sum(terms.values(), np.zeros(())), allowed, self.output_dtype, **terms)

    @cached_property
    def dX(self) -> Expected:
        """`g W + s·(g B) A`."""
        weight = self.weight.T if self.base else None
        chain = RowChain(self.dropped_g, weight, None, self.up.T, self.down.T, self.scale, self.how)
        update = chain.update if self.pre is None else chain.update * self.pre
        terms = {"adapter": update}
        if weight is not None and chain.product is not None:
            terms["base"] = chain.product if self.post is None else self.g @ self.weight

        def allowed() -> Array:
            found = chain.budget
            if self.pre is not None:
                alone = budget.row_chain(self.dropped_g, None, None, self.up.T, self.down.T, self.scale, self.how)
                found = found + alone * self.pre
            if self.post is not None and weight is not None:
                found = found + budget.row_chain(self.g, weight, None, self.up.T, self.down.T, 0.0, self.how)
            return found

        return self._expected("dX", sum(terms.values(), np.zeros(())), allowed, self.operands.dtype, **terms)

    @cached_property
    def dA(self) -> Expected:
        """`s·(g B)ᵀ x`."""
        value = self.scale * ((self.dropped_g @ self.up).T @ self.dropped_x)
        return self._expected(
            "dA",
            value,
            lambda: budget.weight_chain(self.dropped_g, self.up, self.dropped_x, self.scale, self.how),
            self.operands.adapter_dtype,
        )

    @cached_property
    def dB(self) -> Expected:
        """`s·gᵀ (x Aᵀ)`."""
        value = self.scale * (self.dropped_g.T @ (self.dropped_x @ self.down.T))
        return self._expected(
            "dB",
            value,
            lambda: budget.weight_chain(self.dropped_x, self.down.T, self.dropped_g, self.scale, self.how).T,
            self.operands.adapter_dtype,
        )

    @cached_property
    def merged_weight(self) -> Expected:
        """`W + s·B A`, or the update alone without a base."""
        update = self.scale * (self.up @ self.down)
        weight = self.weight if self.base else np.zeros_like(update)
        return self._expected(
            "the merged weight",
            weight + update,
            lambda: budget.merged_weight(weight, self.down, self.up, self.scale, self.how),
            self.operands.dtype,
            adapter=update,
            **({"base": weight} if self.base else {}),
        )

    @cached_property
    def dbias(self) -> Expected:
        """`Σ g` over tokens."""
        return self._expected("dbias", self.g.sum(0), lambda: budget.summed(self.g, self.how), self.operands.dtype)

    def gradient(self, of: str) -> Expected:
        """The expected gradient of the operand named `x`, `lora_A`, `lora_B` or `bias`."""
        return {"x": self.dX, "lora_A": self.dA, "lora_B": self.dB, "bias": self.dbias}[of]
