"""Known-bad twins of backward: a gradient of a fused block lacks a term, belongs to another operand, or is missing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.baselines.fused import Call, Right, gradients, wide
from tests.known_bad import breaks


@breaks("FUS-BWD-DX", says="error ÷ budget", source="one term of a sum omitted")
class ForgetsTheLastBranch(Right):
    def sum_back(self, parts):
        return super().sum_back(parts[:-1] or parts)


@breaks("FUS-BWD-DX", says="the v adapter term", source="a sum over q, k and v of the adapters' parts")
class AddsNoPartOfTheLastAdapter(Right):
    def back_qkv(self, x, projections, gs):
        dx, pairs = super().back_qkv(x, projections, gs)
        last, g = projections[-1], gs[-1]
        if last.A is not None and g is not None:
            dx = dx - self.back(g, last) + g @ last.weight
        return dx, pairs


@breaks("FUS-BWD-DA", says="dA of", source="the gradients of gate and up swapped")
class SwapsTheGradientsOfGateAndUp(Right):
    def back_mlp(self, x, lifts, projections, g, activation):
        dx, pairs = super().back_mlp(x, lifts, projections, g, activation)
        if len(pairs) == 3:
            pairs = [pairs[1], pairs[0], pairs[2]]
        return dx, pairs


@breaks("FUS-BWD-DA", says="dA of down", source="x used in place of h, where both have the same width")
class RecomputesHWithoutUp(Right):
    def back_mlp(self, x, lifts, projections, g, activation):
        dx, pairs = super().back_mlp(x, lifts, projections, g, activation)
        h = self.activated(wide(lifts[0]), activation).to(x.dtype)
        return dx, [*pairs[:-1], (h, g)]


@breaks("FUS-BWD-DA", says="error ÷ budget", dtypes=("float32",), source="activations kept in bfloat16")
class KeepsGateAndUpInSixteenBits(Right):
    def kept(self, x, outputs):
        return (x, *(y.to(torch.bfloat16).to(y.dtype) for y in outputs))


@breaks("FUS-BWD-DB", says="dB of", source="S of the first projection used for all projections")
class UsesTheMiddleOfTheFirst(Right):
    def d_B(self, g, x, p):
        if p.name in ("q", "gate") and p.A is not None:
            self.first = p.A
        elif p.name in ("k", "v") and getattr(self, "first", p.A).shape == p.A.shape:
            p.A = getattr(self, "first", p.A)
        return super().d_B(g, x, p)


@breaks("FUS-BWD-DB", says="constant ratio", source="an omitted scale")
class ForgetsTheScaleOfUp(Right):
    def d_B(self, g, x, p):
        return super().d_B(g, x, p) / (p.scale if p.name in ("up", "k") else 1.0)


@breaks("FUS-BWD-DBIAS", says="constant ratio", source="a mean in place of a sum")
class AveragesTheGradientOfTheBias(Right):
    def d_bias(self, g):
        return g.mean(0)


@breaks("FUS-BWD-DBIAS", says="is None", source="a trainable bias treated as frozen")
class FreezesTheBias(Right):
    def d_bias(self, g):
        return None


@breaks("FUS-BWD-ALONE", says="raised", source="an upstream gradient assumed to exist")
class NeedsEveryGradient(Right):
    def back_qkv(self, x, projections, gs):
        return super().back_qkv(x, projections, [g.contiguous() for g in gs])


@breaks("FUS-BWD-ALONE", says="got a gradient from", source="a workspace that is not cleared")
class UsesAnotherGradientForAMissingOne(Right):
    def back_qkv(self, x, projections, gs):
        dx, pairs = super().back_qkv(x, projections, gs)
        first = next(g for g in gs if g is not None)
        filled = []
        for (rows, g), p in zip(pairs, projections, strict=True):
            n = p.weight.shape[0]
            filled.append((rows, first[:, :1].expand(-1, n) if g is None else g))
        return dx, filled


class StopsWithoutX(Call):
    """A call whose backward pass returns no gradients if x needs none."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gs: Any) -> Any:
        return gradients(ctx, gs) if ctx.needs_input_grad[4] else (None,) * len(ctx.needs_input_grad)


@breaks("FUS-BWD-NEEDS", says="is None", source="a backward pass that returns early if x is frozen")
class NeedsXToRequireGrad(Right):
    @property
    def node(self):
        return StopsWithoutX


@breaks("FUS-BWD-FROZEN", says="although it is frozen")
class TrainsTheWeights(Right):
    def d_weight(self, g, x):
        return g.T @ x


def forgotten(leaf: Tensor) -> None:
    """Set an existing gradient to zero."""
    leaf.grad.zero_()


@breaks("FUS-BWD-ACCUM", says="as if the existing term were missing")
class OverwritesGradients(Right):
    def call(self, activation, x, named):
        for leaf in (t for projection in named.values() for t in projection[2:4]):
            if leaf is not None and leaf.requires_grad:
                leaf.register_hook(lambda _, leaf=leaf: None if leaf.grad is None else forgotten(leaf))
        return super().call(activation, x, named)


@breaks("FUS-BWD-TWICE", says="second", source="the gradient of gate written over the saved gate")
class WritesTheGradientOverTheGate(Right):
    def d_gate(self, d_h, gate, up, activation):
        gate.data.copy_(super().d_gate(d_h, gate, up, activation))
        return gate.clone()


class Forgets(Call):
    """A call whose backward pass works only once."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gs: Any) -> Any:
        right, ctx.right = ctx.right, None
        if right is None:
            raise RuntimeError("the workspace was freed")
        ctx.right = right
        found = gradients(ctx, gs)
        ctx.right = None
        return found


@breaks("FUS-BWD-TWICE", says="raised", source="saved tensors freed by the first backward pass")
class FreesWhatItSaved(Right):
    @property
    def node(self):
        return Forgets


class Again(Call):
    """A call whose backward pass autograd may differentiate."""

    @staticmethod
    def backward(ctx: Any, *gs: Tensor | None) -> Any:
        return gradients(ctx, gs)


@breaks("FUS-BWD-DOUBLE", says="second derivative", dtypes=("float64",))
class CutsTheGraphAtS(Right):
    @property
    def node(self):
        return Again

    def d_B(self, g, x, p):
        return g.T @ self.middle(x, p).detach() * p.scale
