"""Known-bad twins of group `hybrid`: what CustomLinear touches, keeps, and returns."""

from __future__ import annotations

import torch

from tests.baselines.hybrid import Right
from tests.known_bad import breaks

HYBRID = ("hybrid",)


@breaks("HYB-INPUTS", says="x was modified in place", groups=HYBRID, source="unslothai/unsloth c3d6def64a (AL1)")
class WritesDXOverX(Right):
    def run_forward(self, ctx, x, there):
        ctx.x = x.detach()
        return super().run_forward(ctx, x, there)

    def run_backward(self, ctx, g):
        d_x = super().run_backward(ctx, g)
        if 0 not in ctx.x.stride():
            ctx.x.copy_(d_x)
        return d_x


@breaks("HYB-INPUTS", says="memory around", groups=HYBRID)
class WritesPastTheEndOfX(Right):
    def run_forward(self, ctx, x, there):
        x.detach().as_strided((1,), (1,), x.storage_offset() - 1).fill_(7)
        return super().run_forward(ctx, x, there)


@breaks("HYB-OUTPUT", says="raised RuntimeError", groups=HYBRID)
class ReturnsAView(Right):
    def run_forward(self, ctx, x, there):
        return super().run_forward(ctx, x, there).view(-1).view(*x.shape[:-1], -1)


class Kept(torch.autograd.Function):
    """The identity, which needs its result again in backward."""

    @staticmethod
    def forward(ctx, y):
        kept = y.clone()
        ctx.save_for_backward(kept)
        return kept

    @staticmethod
    def backward(ctx, g):
        return g + 0 * ctx.saved_tensors[0]


@breaks("HYB-OUTPUT", says="raised RuntimeError", groups=HYBRID)
class KeepsItsOutputForBackward(Right):
    def layer_forward(self, layer, x):
        return Kept.apply(super().layer_forward(layer, x))


@breaks("HYB-CHANGED", says="returned", groups=HYBRID)
class DoesNotNoticeANewWeight(Right):
    def BackwardModuleLinear(self, weight, weight_transposed=False):
        return super().BackwardModuleLinear(weight.data, weight_transposed)


@breaks("HYB-REPEAT", says="differs between two identical runs", groups=HYBRID)
class AddsNoise(Right):
    def run_forward(self, ctx, x, there):
        y = super().run_forward(ctx, x, there)
        return y * (1 + 0.02 * torch.rand(y.shape, dtype=y.dtype))
