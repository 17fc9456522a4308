"""Closed formulas in NumPy float64 for the outputs and every gradient of the fused blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from conformance.clauses.fused import activation_curves
from conformance.numerics.formats import Array


@dataclass(frozen=True)
class Chain:
    """One projection ``t ↦ t Wᵀ + b + s·(t Aᵀ) Bᵀ``; without an adapter, A and B are zero.

    Attributes:
        weight: [N, K].   bias: [N] or None.   down: A [r, K].   up: B [N, r].
    """

    weight: Array
    bias: Array | None
    down: Array
    up: Array
    scale: float

    @cached_property
    def merged(self) -> Array:
        """``W + s·B A``."""
        return np.asarray(self.weight + self.scale * (self.up @ self.down))

    @cached_property
    def turned(self) -> Chain:
        """The chain of the backward pass: ``g ↦ g W + s·(g B) A``."""
        return Chain(self.weight.T, None, self.up.T, self.down.T, self.scale)

    def __call__(self, rows: Array) -> Array:
        out = rows @ self.merged.T
        return out if self.bias is None else out + self.bias

    def without(self, term: str) -> Chain:
        """The chain without its `adapter` or its `bias`."""
        if term == "bias":
            return dataclasses.replace(self, bias=None)
        return dataclasses.replace(self, up=np.zeros_like(self.up))

    def gradient(self, kind: str, rows: Array, g: Array) -> Array:
        """dA, dB or dbias, from the chain's input and the gradient of its output."""
        if kind == "lora_A":
            return np.asarray(self.scale * ((g @ self.up).T @ rows))
        if kind == "lora_B":
            return np.asarray(self.scale * (g.T @ (rows @ self.down.T)))
        return np.asarray(g.sum(0))


Chains = Mapping[str, Chain]


class Lifts:
    """The intermediates between the projections of `lora_mlp`.

    Attributes:
        inner: gate and up, or up alone, by name.   h: their product.   d_h: its gradient.
        d_inner: the gradients of gate and up.
    """

    def __init__(self, chains: Chains, x: Array, g: Array, activation: str) -> None:
        self.inner = {name: chain(x) for name, chain in chains.items() if name != "down"}
        self.first = next(iter(self.inner.values()))
        self._down, self._g, self._activation = chains["down"], g, activation

    @cached_property
    def h(self) -> Array:
        """f(gate) ⊙ up, or f(up)."""
        return self._f if len(self.inner) == 1 else self._f * self.inner["up"]

    @cached_property
    def d_h(self) -> Array:
        """The gradient of h."""
        return self._down.turned(self._g)

    @cached_property
    def d_inner(self) -> dict[str, Array]:
        """The gradients of gate and up."""
        slope = activation_curves.slope(self.first, self._activation)
        if len(self.inner) == 1:
            return {"up": self.d_h * slope}
        return {"gate": self.d_h * self.inner["up"] * slope, "up": self.d_h * self._f}

    @cached_property
    def _f(self) -> Array:
        return activation_curves.value(self.first, self._activation)


class Results:
    """Outputs by name, dX as `x`, and dA, dB and dbias by operand name; each is computed on demand."""

    def __init__(self, chains: Chains, x: Array, gs: Mapping[str, Array], activation: str) -> None:
        """Keep the operands that the results are computed from.

        Args:
            activation: that of `lora_mlp`, whose output is `y`; empty for `lora_qkv`, with one output for each chain.
        """
        self.chains, self.x, self.gs, self.activation = chains, x, gs, activation

    @cached_property
    def between(self) -> Lifts:
        """The intermediates of `lora_mlp`."""
        return Lifts(self.chains, self.x, self.gs["y"], self.activation)

    def __getitem__(self, key: str) -> Array:
        projection, _, kind = key.rpartition(".")
        upstream = self.between.d_inner if self.activation and (key == "x" or projection) else self.gs
        if key == "x":
            parts = (chain.turned(upstream[name]) for name, chain in self.chains.items() if name in upstream)
            return np.asarray(sum(parts))
        if not projection:
            return self.chains["down"](self.between.h) if key == "y" else self.chains[key](self.x)
        if projection == "down":
            return self.chains["down"].gradient(kind, self.between.h, self.gs["y"])
        return self.chains[projection].gradient(kind, self.x, upstream[projection])
