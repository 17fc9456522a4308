"""The formulas of the fused blocks in NumPy float64: outputs and every gradient, by closed forms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from conformance.fused import curves
from conformance.numerics import Array


@dataclass(frozen=True)
class Chain:
    """One projection ``t ↦ t Wᵀ + b + s·(t Aᵀ) Bᵀ``; without adapter A and B are zero.

    Attributes:
        weight: [N, K].   bias: [N] or None.   down: A [r, K].   up: B [N, r].
    """

    weight: Array
    bias: Array | None
    down: Array
    up: Array
    scale: float

    @property
    def merged(self) -> Array:
        """``W + s·B A``."""
        return np.asarray(self.weight + self.scale * (self.up @ self.down))

    @property
    def turned(self) -> Chain:
        """The same backwards: ``g ↦ g W + s·(g B) A``."""
        return Chain(self.weight.T, None, self.up.T, self.down.T, self.scale)

    def __call__(self, rows: Array) -> Array:
        out = rows @ self.merged.T
        return out if self.bias is None else out + self.bias

    def without(self, term: str) -> Chain:
        """The chain without its `adapter` or its `bias`."""
        if term == "bias":
            return dataclasses.replace(self, bias=None)
        return dataclasses.replace(self, up=np.zeros_like(self.up))

    def gradients(self, name: str, rows: Array, g: Array) -> dict[str, Array]:
        """dA, dB and dbias for its input and the gradient of its output."""
        return {
            f"{name}.lora_A": self.scale * ((g @ self.up).T @ rows),
            f"{name}.lora_B": self.scale * (g.T @ (rows @ self.down.T)),
            f"{name}.bias": g.sum(0),
        }


Chains = Mapping[str, Chain]


def qkv(chains: Chains, x: Array, gs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs by name, `x` for dX, and dA, dB and dbias by their operands' names."""
    found = {name: chain(x) for name, chain in chains.items()}
    found["x"] = np.asarray(sum(chain.turned(gs[name]) for name, chain in chains.items()))
    for name, chain in chains.items():
        found |= chain.gradients(name, x, gs[name])
    return found


@dataclass(frozen=True)
class Lifts:
    """What lies between the projections of `lora_mlp`.

    Attributes:
        inner: gate and up, or up alone, by name.   h: their product.   d_h: its gradient.
        d_inner: the gradients of gate and up.
    """

    inner: dict[str, Array]
    h: Array
    d_h: Array
    d_inner: dict[str, Array]


def lifts(chains: Chains, x: Array, g: Array, activation: str) -> Lifts:
    """Every intermediate of `lora_mlp`."""
    inner = {name: chain(x) for name, chain in chains.items() if name != "down"}
    d_h = chains["down"].turned(g)
    first = next(iter(inner.values()))
    f, slope = curves.value(first, activation), curves.slope(first, activation)
    if len(inner) == 1:
        return Lifts(inner, f, d_h, {"up": d_h * slope})
    return Lifts(inner, f * inner["up"], d_h, {"gate": d_h * inner["up"] * slope, "up": d_h * f})


def mlp(chains: Chains, x: Array, g: Array, activation: str) -> dict[str, Array]:
    """`y`, `x` for dX, and dA, dB and dbias by their operands' names."""
    between = lifts(chains, x, g, activation)
    found = {"y": chains["down"](between.h)}
    found["x"] = np.asarray(sum(chains[name].turned(d) for name, d in between.d_inner.items()))
    for name, d in between.d_inner.items():
        found |= chains[name].gradients(name, x, d)
    return found | chains["down"].gradients("down", between.h, g)
