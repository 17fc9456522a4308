"""The expected output and gradients of a batch: those of a linear layer over the rows of each adapter."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from conformance.clauses.batched.batch import Batch
from conformance.clauses.batched.row_adapters import Integers
from conformance.judgement.linear_oracle import Expected
from conformance.numerics import budget
from conformance.numerics.budget import RowChain
from conformance.numerics.formats import Array


class Oracle:
    """Expected output and gradients of a batch, from its index, ranks, scales and values."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.how = batch, batch.rounding
        values = batch.values
        self.x, self.g = batch.rows("x"), batch.rows("g")
        self.weight, self.bias = values["weight"], values.get("bias")
        self.down, self.up = values["lora_A"], values["lora_B"]

    def adapter(self, adapter: int) -> tuple[Array, Array, float]:
        """lora_A, lora_B and the scale of an adapter up to its rank; zeros of rank 1 for none."""
        rank = self.batch.ranks[adapter] if adapter >= 0 else 0
        if not rank:
            return np.zeros((1, self.weight.shape[1])), np.zeros((self.weight.shape[0], 1)), 0.0
        return self.down[adapter, :rank], self.up[adapter, :, :rank], self.batch.scales[adapter]

    def _groups(self) -> list[tuple[int, Array]]:
        """Each adapter that some row has, -1 for none, with the mask of its rows."""
        return [(int(adapter), self.batch.index == adapter) for adapter in np.unique(self.batch.index)]

    @cached_property
    def y(self) -> Expected:
        """`x_i Wᵀ + b + s_e·(x_i A_eᵀ) B_eᵀ`."""
        chains = {
            adapter: RowChain(self.x[rows], self.weight, self.bias, *self.adapter(adapter), self.how)
            for adapter, rows in self._groups()
        }
        terms = {"base": self.x @ self.weight.T, "adapter": self._update(self.batch.index)}
        if self.bias is not None:
            terms["bias"] = np.broadcast_to(self.bias, terms["base"].shape)
        mistakes = {
            words: sum(terms.values()) - terms["adapter"] + update for words, update in self._mistaken().items()
        }
        allowed = self._assembled({adapter: chain.budget for adapter, chain in chains.items()}, self.weight.shape[0])
        return self._of_rows("y", sum(terms.values(), np.zeros(())), allowed, terms, mistakes)

    def _update(self, index: Integers, ranks: Integers | None = None, scales: list[float] | None = None) -> Array:
        """The adapters' term of each row, with this index, or with other ranks or scales."""
        found = np.zeros((len(self.x), self.weight.shape[0]))
        for adapter in (int(each) for each in np.unique(index) if each >= 0):
            rank = (self.batch.ranks if ranks is None else ranks)[adapter]
            scale = (self.batch.scales if scales is None else scales)[adapter]
            rows = index == adapter
            found[rows] = scale * (self.x[rows] @ self.down[adapter, :rank].T @ self.up[adapter, :, :rank].T)
        return found

    def _mistaken(self) -> dict[str, Array]:
        """By its words, the adapters' term that a known mistake gives."""
        index, batch = self.batch.index, self.batch
        if not len(index):
            return {}
        first = [batch.scales[0]] * len(batch.scales)
        least = np.full(len(batch.ranks), min(batch.ranks[0], *batch.ranks))
        return {
            "index -1 were the last adapter": self._update(np.where(index < 0, len(batch.ranks) - 1, index)),
            "index -1 were adapter 0": self._update(np.maximum(index, 0)),
            "every row had the adapter of the first row": self._update(np.full_like(index, index[0])),
            "each row had the adapter of the row before": self._update(np.roll(index, 1)),
            "every adapter had the scale of adapter 0": self._update(index, scales=first),
            "every adapter had the smallest rank": self._update(index, ranks=least),
        }

    @cached_property
    def dX(self) -> Expected:
        """`g_i W + s_e·(g_i B_e) A_e`."""
        update, found = np.zeros_like(self.x), {}
        for adapter, rows in self._groups():
            down, up, scale = self.adapter(adapter)
            chain = RowChain(self.g[rows], self.weight.T, None, up.T, down.T, scale, self.how)
            update[rows], found[adapter] = chain.update, chain.budget
        terms = {"base": self.g @ self.weight, "adapter": update}
        allowed = self._assembled(found, self.weight.shape[1])
        return self._of_rows("dX", terms["base"] + update, allowed, terms, {})

    def _assembled(self, parts: dict[int, Array], width: int) -> Array:
        found = np.zeros((len(self.x), width))
        for adapter, rows in self._groups():
            found[rows] = parts[adapter]
        return found

    def _of_rows(
        self, name: str, value: Array, allowed: Array, terms: dict[str, Array], mistakes: dict[str, Array]
    ) -> Expected:
        """The expected y or dX, in its shape; a term of zeros, that of batches without adapters, is left out."""
        batch = self.batch
        shape = (*batch.case.leading, value.shape[-1])
        shown = {term: part.reshape(shape) for term, part in terms.items() if part.any()}
        return Expected(
            name,
            value.reshape(shape),
            None if batch.exact else allowed.reshape(shape),
            batch.computed_in if name == "y" else batch.dtype,
            shown if len(shown) > 1 else {},
            certified=bool(self.x.size),
            mistakes={words: part.reshape(shape) for words, part in mistakes.items()},
        )

    @cached_property
    def dA(self) -> Expected:
        """`s_e·(g B_e)ᵀ x` over the rows of each adapter; zeros beyond its rank."""
        value, allowed = np.zeros_like(self.down), np.zeros_like(self.down)
        for adapter, rows in self._groups():
            if adapter < 0 or not (rank := self.batch.ranks[adapter]):
                continue
            _, up, scale = self.adapter(adapter)
            x, g = self.x[rows], self.g[rows]
            value[adapter, :rank] = scale * ((g @ up).T @ x)
            allowed[adapter, :rank] = budget.weight_chain(g, up, x, scale, self.how, gathered=True)
        return self._of_adapters("dA", value, allowed)

    @cached_property
    def dB(self) -> Expected:
        """`s_e·gᵀ (x A_eᵀ)` over the rows of each adapter; zeros beyond its rank."""
        value, allowed = np.zeros_like(self.up), np.zeros_like(self.up)
        for adapter, rows in self._groups():
            if adapter < 0 or not (rank := self.batch.ranks[adapter]):
                continue
            down, _, scale = self.adapter(adapter)
            x, g = self.x[rows], self.g[rows]
            value[adapter, :, :rank] = scale * (g.T @ (x @ down.T))
            allowed[adapter, :, :rank] = budget.weight_chain(x, down.T, g, scale, self.how, gathered=True).T
        return self._of_adapters("dB", value, allowed)

    def _of_adapters(self, name: str, value: Array, allowed: Array) -> Expected:
        # an adapter without rows has a gradient of exactly zero, and so has a batch without adapters
        exact = self.batch.exact or not value.any()
        return Expected(name, value, None if exact else allowed, self.batch.adapter_dtype, certified=bool(value.any()))

    def gradient(self, of: str) -> Expected:
        """The expected gradient of the operand named `x`, `lora_A` or `lora_B`."""
        return {"x": self.dX, "lora_A": self.dA, "lora_B": self.dB}[of]
