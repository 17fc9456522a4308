"""The expected output and gradients of a grouped layer: those of one linear layer for the rows of each expert."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch

from conformance.clauses.experts.case import Chosen
from conformance.clauses.experts.grouped import Grouped
from conformance.judgement.linear_oracle import Expected
from conformance.numerics import budget
from conformance.numerics.budget import RowChain
from conformance.numerics.formats import Array


class Oracle:
    """Expected results of a grouped layer.

    Rows do not depend on each other, so each has the budget of its expert's linear layer. Absent rows, and the
    gradients of experts without rows, are exactly zero: their budget is zero too.
    """

    def __init__(self, grouped: Grouped) -> None:
        self.grouped, self.how, self.scale = grouped, grouped.rounding, grouped.case.scale
        self.x, self.g = grouped.rows("x"), grouped.rows("g")
        self.down, self.up = grouped.values["lora_A"], grouped.values["lora_B"]

    def _experts(self) -> Iterator[tuple[int, Chosen]]:
        """The experts that have rows, with these rows."""
        for e in range(self.grouped.case.experts):
            own = self.grouped.index == e
            if own.any():
                yield e, own

    def _of(self, name: str, e: int) -> Array | None:
        found = self.grouped.values.get(name)
        return None if found is None else found[e]

    @cached_property
    def y(self) -> Expected:
        """`W_e x + b_e + s·B_e (A_e x)` of each row."""
        return self._rows("y", self.grouped.computed_in if self.grouped.case.base else None)

    @cached_property
    def dX(self) -> Expected:
        """`g W_e + s·(g B_e) A_e` of each row."""
        return self._rows("dX", self.grouped.dtype)

    def _rows(self, name: str, dtype: torch.dtype | None) -> Expected:
        forward = name == "y"
        rows, width = (self.x, self.g.shape[1]) if forward else (self.g, self.x.shape[1])
        shape = (len(rows), width)
        parts = {term: np.zeros(shape) for term in ("base", "bias", "adapter")}
        limits = np.zeros(shape)
        for e, own in self._experts():
            weight, bias, down, up = self._of("weight", e), self._of("bias", e), self.down[e], self.up[e]
            if not forward:
                weight, bias, down, up = None if weight is None else weight.T, None, up.T, down.T
            chain = RowChain(rows[own], weight, bias, down, up, self.scale, self.how)
            parts["adapter"][own] = chain.update
            parts["base"][own] = 0.0 if chain.product is None else chain.product
            parts["bias"][own] = 0.0 if bias is None else bias
            limits[own] = chain.budget
        return self._expected(name, parts, limits, dtype or self.grouped.dtype)

    @cached_property
    def dA(self) -> Expected:
        """`s·(g B_e)ᵀ x` over the rows of each expert."""
        value, limits = np.zeros(self.down.shape), np.zeros(self.down.shape)
        for e, own in self._experts():
            value[e] = self.scale * (self.g[own] @ self.up[e]).T @ self.x[own]
            limits[e] = budget.weight_chain(self.g[own], self.up[e], self.x[own], self.scale, self.how)
        return self._expected("dA", {"adapter": value}, limits, self.grouped.adapter_dtype)

    @cached_property
    def dB(self) -> Expected:
        """`s·gᵀ (x A_eᵀ)` over the rows of each expert."""
        value, limits = np.zeros(self.up.shape), np.zeros(self.up.shape)
        for e, own in self._experts():
            value[e] = self.scale * self.g[own].T @ (self.x[own] @ self.down[e].T)
            limits[e] = budget.weight_chain(self.x[own], self.down[e].T, self.g[own], self.scale, self.how).T
        return self._expected("dB", {"adapter": value}, limits, self.grouped.adapter_dtype)

    def _expected(self, name: str, parts: dict[str, Array], limits: Array, dtype: torch.dtype) -> Expected:
        value = sum(parts.values(), np.zeros(()))
        shape = {"y": self.grouped.values["g"].shape, "dX": self.grouped.values["x"].shape}.get(name, value.shape)
        terms = {term: part.reshape(shape) for term, part in parts.items() if part.any()}
        return Expected(
            name,
            value.reshape(shape),
            None if self.grouped.exact else limits.reshape(shape),
            dtype,
            terms if len(terms) > 1 else {},
            certified=bool(self.grouped.present.any()),
        )

    def gradient(self, operand: str) -> Expected:
        """The expected gradient of the operand named `x`, `lora_A` or `lora_B`."""
        return {"x": self.dX, "lora_A": self.dA, "lora_B": self.dB}[operand]
