"""Known-bad twins of several layers: one layer or call changes the result of another."""

from __future__ import annotations

import torch

from tests.baselines.hybrid import Right
from tests.known_bad import breaks


@breaks("HYB-SEVERAL", says="the backward pass of one of several calls", dtypes=("float32",))
class RemembersTheLastLayer(Right):
    def run_forward(self, ctx, x, there):
        self.last = ctx.back
        return super().run_forward(ctx, x, there)

    def run_backward(self, ctx, g):
        ctx.back = self.last
        return super().run_backward(ctx, g)


@breaks("HYB-SEVERAL", says="the backward pass of one of several calls", dtypes=("float32",))
class RemembersTheLastShape(Right):
    def run_forward(self, ctx, x, there):
        ctx.back.shape = x.shape
        return super().run_forward(ctx, x, there)

    def run_backward(self, ctx, g):
        return super().run_backward(ctx, g).reshape(ctx.back.shape)


@breaks("HYB-NO-GRADIENT", says="made x require grad", dtypes=("float32",))
class MakesTheInputRequireGrad(Right):
    def layer_forward(self, layer, x):
        y = super().layer_forward(layer, x)
        if torch.is_grad_enabled() and x.is_leaf:
            x.requires_grad_(True)
        return y


@breaks("HYB-NO-GRADIENT", says="y requires grad although", dtypes=("float32",))
class AlwaysKeepsAGraph(Right):
    def layer_forward(self, layer, x):
        return super().layer_forward(layer, x if x.requires_grad else x.detach().requires_grad_(True))


@breaks("HYB-NO-GRADIENT", says="y requires grad under no_grad", dtypes=("float32",))
class SwitchesGradModeOn(Right):
    def layer_forward(self, layer, x):
        with torch.enable_grad():
            return super().layer_forward(layer, x)
