"""Known-bad twins of backward: a gradient lacks a term, mixes the rows of experts, or is missing."""

from __future__ import annotations

from typing import Any

import torch

from tests.baselines.experts import Call, Right, gradients
from tests.known_bad import breaks


@breaks("EXP-BWD-DX", says="base term")
class LosesTheBaseInDX(Right):
    def back(self, g, p, mask):
        base = 0.0 if p.weight is None else g @ p.weight
        return super().back(g, p, mask) - base


@breaks("EXP-BWD-DX", says="worst    dX", source="the dX of sorted rows, not put back into their order")
class LeavesDXSorted(Right):
    def backward_rows(self, c, g):
        dx, dA, dB = super().backward_rows(c, g)
        order = torch.cat(c.own)
        missing = torch.tensor([i for i in range(len(dx)) if i not in set(order.tolist())], dtype=torch.int64)
        return dx[torch.cat([order, missing])], dA, dB


@breaks("EXP-BWD-DA", says="worst    dA", source="one gradient for all experts, as of a shared adapter")
class SumsOverAllRows(Right):
    def backward_rows(self, c, g):
        dx, dA, dB = super().backward_rows(c, g)
        return dx, dA.sum(0, keepdim=True).expand_as(dA).contiguous(), dB


@breaks("EXP-BWD-DA", says="constant ratio", source="an omitted scale", dtypes=("float32",))
class ForgetsTheScaleInDA(Right):
    def d_A(self, g, x, p):
        return super().d_A(g, x, p) / p.scale


@breaks("EXP-BWD-DA", says="worst    dA", source="a gradient averaged over the rows of its expert")
class AveragesOverRows(Right):
    def d_A(self, g, x, p):
        return super().d_A(g, x, p) / len(x)


@breaks("EXP-BWD-DB", says="worst    dB", source="S in sorted order beside g in the order of the rows")
class PairsSortedSWithUnsortedG(Right):
    def d_B(self, g, x, p):
        return super().d_B(g.flip(0), x, p)


@breaks("EXP-BWD-DB", says="constant ratio", source="a gradient that is accumulated twice")
class DoublesDB(Right):
    def d_B(self, g, x, p):
        return 2 * super().d_B(g, x, p)


class StopsWithoutX(Call):
    """A call whose backward pass returns no gradients if x needs none."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Any) -> Any:
        return gradients(ctx, g) if ctx.needs_input_grad[4] else (None,) * len(ctx.needs_input_grad)


@breaks("EXP-BWD-NEEDS", says="is None", source="a backward pass that returns early if x is frozen")
class NeedsXToRequireGrad(Right):
    @property
    def node(self):
        return StopsWithoutX


@breaks("EXP-BWD-FROZEN", says="although it is frozen")
class TrainsTheWeights(Right):
    def d_weight(self, c, g, x):
        return None if c.weight is None else torch.zeros_like(c.weight)


@breaks("EXP-BWD-ACCUM", says="as if the existing term were missing")
class OverwritesGradients(Right):
    def call(self, x, own, weight, bias, A, B, scale, drop):
        for leaf in (A, B):
            leaf.register_hook(lambda _, leaf=leaf: None if leaf.grad is None else forgotten(leaf))
        return super().call(x, own, weight, bias, A, B, scale, drop)


def forgotten(leaf):
    """Set an existing gradient to zero."""
    leaf.grad.zero_()


class Forgets(Call):
    """A call whose backward pass works only once."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Any) -> Any:
        own, ctx.own = ctx.own, None
        if own is None:
            raise RuntimeError("the routing was freed")
        ctx.own = own
        found = gradients(ctx, g)
        ctx.own = None
        return found


@breaks("EXP-BWD-TWICE", says="raised", source="the routing freed by the first backward pass")
class FreesTheRouting(Right):
    @property
    def node(self):
        return Forgets


@breaks("EXP-BWD-SUM", says="raised", source="the backward pass of grouped_mm raises for a gradient of stride 0")
class NeedsAPackedGradient(Right):
    def backward_rows(self, c, g):
        if 0 in g.stride():
            raise RuntimeError("strides should be multiples of 16 bytes")
        return super().backward_rows(c, g)


class Again(Call):
    """A call whose backward pass autograd may differentiate."""

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return gradients(ctx, g)


@breaks("EXP-BWD-DOUBLE", says="second derivative", dtypes=("float64",))
class CutsTheGraphAtS(Right):
    @property
    def node(self):
        return Again

    def d_B(self, g, x, p):
        return g.T @ self.middle(x, p).detach() * p.scale
