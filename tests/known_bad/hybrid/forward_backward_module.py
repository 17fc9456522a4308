"""Known-bad twins of forward backward module: it sends the wrong tensor to a module, or sends it twice."""

from __future__ import annotations

import torch.nn.functional as F

from tests.baselines.hybrid import Right
from tests.known_bad import breaks


@breaks("HYB-ROUTE-FWD", says="was called 2 times")
class RunsForwardTwice(Right):
    def run_forward(self, ctx, x, there):
        there(x)
        return super().run_forward(ctx, x, there)


@breaks("HYB-ROUTE-FWD", says="other values than x")
class ScalesWhatItSends(Right):
    def run_forward(self, ctx, x, there):
        return super().run_forward(ctx, x * 2, there)


@breaks("HYB-ROUTE-FWD", says="forward called the backward module")
class WarmsTheBackwardModuleUp(Right):
    def run_forward(self, ctx, x, there):
        y = super().run_forward(ctx, x, there)
        ctx.back(y)
        return y


@breaks("HYB-ROUTE-BWD", says="backward_module was called 0 times")
class DifferentiatesWhatItCannotSee(Right):
    def run_backward(self, ctx, g):
        weight = ctx.back.matrix.neg() if hasattr(ctx.back, "matrix") else None
        return super().run_backward(ctx, g) if weight is None else g @ weight


@breaks(
    "HYB-ROUTE-BWD",
    says="zeros",
    source="zama-ai/concrete-ml 23cb7dc4d (#765): x.detach() (GR2)",
)
class SendsADetachedInput(Right):
    def run_backward(self, ctx, g):
        return super().run_backward(ctx, g) * 0


@breaks("HYB-ROUTE-BWD", says="other values than the upstream gradient")
class ClampsTheGradient(Right):
    def run_backward(self, ctx, g):
        return super().run_backward(ctx, g.clamp(-0.5, 0.5))


@breaks("HYB-ROUTE-SWAP", says="the new forward_module was called 0 times")
class KeepsItsFirstModules(Right):
    def layer_forward(self, layer, x):
        if not hasattr(layer.forward_module, "tensors"):
            return F.linear(x, layer.weight if layer.weight.shape[1] == x.shape[-1] else layer.weight.t(), layer.bias)
        return super().layer_forward(layer, x)


@breaks("HYB-ROUTE-ONLY-X", says="got a gradient")
class LeavesItToAutograd(Right):
    def route(self, x, there, _back):
        return there(x)


@breaks("HYB-ROUTE-DOUBLE", says="taking dX for a constant")
class LosesTheGraphOfDX(Right):
    def check_graph(self, _g, _d_x):
        pass
