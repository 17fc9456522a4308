"""The expected outputs and gradients of a fused block, each with its budget and the terms that it must contain."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from conformance.clauses.fused.block import Block
from conformance.clauses.fused.formula import Chain, Results
from conformance.clauses.fused.rounding_spread import Spread, allowed, independent
from conformance.judgement.linear_oracle import Expected
from conformance.numerics import budget
from conformance.numerics.formats import Array


class Oracle:
    """Expected outputs and gradients of a block.

    `lora_qkv` is three linear layers: each output has the budget of one, and dX that of the three, whose parts are
    stored up to twice while they are added. For `lora_mlp`, `rounding_spread` adds the errors of its intermediates.
    """

    def __init__(self, block: Block) -> None:
        self.block, self.how = block, block.rounding
        self.chains = {name: self._chain(name) for name in block.names}
        self.x = block.rows("x")
        self.gs = {name: block.rows(f"g of {name}") for name in block.outputs}
        self._known: dict[str, Expected] = {}

    def _chain(self, name: str) -> Chain:
        values, scale = self.block.values, self.block.scale(name)
        weight = values[f"{name}.weight"]
        down = values.get(f"{name}.lora_A", np.zeros((1, weight.shape[1])))
        up = values.get(f"{name}.lora_B", np.zeros((weight.shape[0], 1)))
        return Chain(weight, values.get(f"{name}.bias"), down, up, scale)

    def _computed(self, chains: Mapping[str, Chain], gs: Mapping[str, Array], activation: str = "") -> Results:
        used = "" if self.block.name == "lora_qkv" else activation or self.block.case.activation
        return Results(chains, self.x, gs, used)

    @cached_property
    def exact(self) -> Results:
        """The exact outputs and gradients."""
        return self._computed(self.chains, self.gs)

    @cached_property
    def lacking(self) -> dict[str, Results]:
        """The results without one adapter, one bias, or the gradient of one of q, k and v, by the missing term."""
        found = {}
        for name, chain in self.chains.items():
            for term in ("adapter", "bias"):
                if f"{name}.{ {'adapter': 'lora_A', 'bias': 'bias'}[term] }" in self.block.values:
                    found[f"{name} {term}"] = self._computed({**self.chains, name: chain.without(term)}, self.gs)
        for name in self.gs if len(self.gs) > 1 else ():
            found[f"g of {name}"] = self._computed(self.chains, {**self.gs, name: np.zeros_like(self.gs[name])})
        return found

    def _lacking_for(self, key: str) -> dict[str, Results]:
        """The entries of `lacking` in which a result may differ: q, k and v do not depend on each other."""
        projection = key.rpartition(".")[0] or key
        if self.block.name == "lora_mlp" or projection not in self.chains:
            return self.lacking
        own = (f"{projection} adapter", f"{projection} bias", f"g of {projection}")
        return {term: found for term, found in self.lacking.items() if term in own}

    def under(self, activation: str, name: str) -> Array:
        """An output or gradient, computed with another activation."""
        return self._computed(self.chains, self.gs, activation)[name]

    def only(self, outputs: tuple[str, ...]) -> Oracle:
        """The oracle of a backward pass from these outputs alone."""
        other = Oracle(self.block)
        other.gs = {name: g if name in outputs else np.zeros_like(g) for name, g in self.gs.items()}
        return other

    def output(self, name: str) -> Expected:
        """An output: `q`, `k`, `v` or `y`."""
        return self._once(name, name)

    def gradient(self, operand: str) -> Expected:
        """The gradient of `x` or of an operand such as `q.lora_A`."""
        projection, _, kind = operand.rpartition(".")
        symbol = {"x": "dX", "lora_A": f"dA of {projection}", "lora_B": f"dB of {projection}"}
        return self._once(operand, symbol.get(kind, f"dbias of {projection}"))

    def _once(self, key: str, name: str) -> Expected:
        if key not in self._known:
            self._known[key] = self._expected(key, name, self.exact[key])
        return self._known[key]

    def _expected(self, key: str, name: str, value: Array) -> Expected:
        block = self.block
        shape = (*block.case.leading, value.shape[-1]) if key == "x" or key in block.outputs else value.shape
        dtype = block.computed_in if key in block.outputs else block.placed[key].tensor.dtype
        terms = {term: value - other[key] for term, other in self._lacking_for(key).items()}
        if block.case.special in ("saturated", "steep") and key not in block.outputs:
            terms = {}  # where the activation is flat, a gradient hardly depends on any term
        # a term must be one that the result depends on, and not the whole result
        terms = {term: part.reshape(shape) for term, part in terms.items() if part.any() and not _same(part, value)}
        limits = None if block.exact else self._budget(key).reshape(shape)
        certified = self.x.size > 0
        return Expected(name, value.reshape(shape), limits, dtype, terms, certified=certified)

    def _budget(self, key: str) -> Array:
        projection, _, kind = key.rpartition(".")
        if self.block.name == "lora_qkv":
            return self._budget_of_qkv(key, projection, kind)
        return self._budget_of_mlp(key, projection, kind)

    def _budget_of_qkv(self, key: str, projection: str, kind: str) -> Array:
        if key in self.chains:
            return allowed(self.chains[key], self.x, self.how)
        if key == "x":
            return self._sum_of({name: chain.turned for name, chain in self.chains.items()}, self.gs)
        return self._of_operand(self.chains[projection], self.x, self.gs[projection], kind)

    def _sum_of(self, chains: Mapping[str, Chain], gs: Mapping[str, Array]) -> Array:
        """Budget of a sum of chains: their budgets, and one store for each part added to the others."""
        parts = [
            np.abs(gs[name] @ chain.weight.T) + np.abs(chain.scale * (gs[name] @ chain.down.T @ chain.up.T))
            for name, chain in chains.items()
        ]
        stores = self.how.unit * (len(parts) - 1) * sum(parts, np.zeros(()))
        return np.asarray(stores + sum(allowed(chain, gs[name], self.how) for name, chain in chains.items()))

    def _of_operand(self, chain: Chain, rows: Array, g: Array, kind: str) -> Array:
        """Budget of dA, dB or dbias of one chain for exact rows and g."""
        if kind == "lora_A":
            return budget.weight_chain(g, chain.up, rows, chain.scale, self.how)
        if kind == "lora_B":
            return budget.weight_chain(rows, chain.down.T, g, chain.scale, self.how).T
        return budget.summed(g, self.how)

    @cached_property
    def _spread(self) -> Spread:
        return Spread(self.chains, self.exact.between, self.x, self.gs["y"], self.block.case.activation, self.how)

    def _budget_of_mlp(self, key: str, projection: str, kind: str) -> Array:
        spread, between, down = self._spread, self._spread.between, self.chains["down"]
        if key == "y":
            return allowed(down, between.h, self.how) + spread.of_h(down.merged)
        if key == "x":
            inner = {name: self.chains[name] for name in between.inner}
            carried = spread.of_d_inner({name: chain.merged.T for name, chain in inner.items()})
            return self._sum_of({name: chain.turned for name, chain in inner.items()}, between.d_inner) + carried
        if projection == "down":
            return self._of_operand(down, between.h, self.gs["y"], kind) + self._carried_to_down(kind)
        g = between.d_inner[projection]
        return self._of_operand(self.chains[projection], self.x, g, kind) + self._carried_inside(projection, kind)

    def _carried_to_down(self, kind: str) -> Array:
        """The error that h carries into dA and dB of down."""
        chain, g = self.chains["down"], self.gs["y"]
        if kind == "lora_A":
            return abs(chain.scale) * self._over_tokens(g @ chain.up, self._spread.of_h_itself())
        if kind == "lora_B":
            return abs(chain.scale) * self._over_tokens(g, self._spread.of_h(chain.down))
        return np.zeros(())

    def _carried_inside(self, projection: str, kind: str) -> Array:
        """The error that d_gate and d_up carry into the gradients of gate's and up's operands."""
        chain, x = self.chains[projection], self.x
        if kind == "lora_A":
            return abs(chain.scale) * self._over_tokens(self._spread.of_d_inner({projection: chain.up.T}), x)
        itself = self._spread.of_d_inner_itself(projection)
        if kind == "lora_B":
            return abs(chain.scale) * self._over_tokens(itself, x @ chain.down.T)
        return self._over_tokens(itself, np.ones((len(x), 1)))[:, 0]

    def _over_tokens(self, left: Array, right: Array) -> Array:
        """The error of `leftᵀ right` from errors in one factor: those of equal tokens add up, others average out."""
        if self.how.correlated:
            return np.asarray(np.abs(left).T @ np.abs(right))
        return independent(left.T, right)


def _same(a: Array, b: Array) -> bool:
    return bool(np.array_equal(a, b))
