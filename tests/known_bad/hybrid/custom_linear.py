"""Known-bad twins of custom linear: `CustomLinear` computes a wrong y or dX, or trains its weight."""

from __future__ import annotations

import torch

from tests.baselines.hybrid import Right
from tests.known_bad import breaks


@breaks("HYB-FWD", says="raised", source="linkedin/Liger-Kernel 4a1677b8 (#931) (GR4)")
class NeedsGradMode(Right):
    def layer_forward(self, layer, x):
        if torch.is_grad_enabled():
            product = layer.forward_module
        return self.route(x, product, layer.backward_module)


@breaks("HYB-FWD", says="constant ratio 2")
class DoublesTheOutput(Right):
    def layer_forward(self, layer, x):
        return super().layer_forward(layer, x) * 2


@breaks("HYB-DX", says="zeros", source="zama-ai/concrete-ml 23cb7dc4d (#765): x.detach() (GR2)")
class LosesTheBaseGradient(Right):
    def layer_forward(self, layer, x):
        return super().layer_forward(layer, x.detach()) + x.sum() * 0


@breaks("HYB-DX", says="error ÷ budget", dtypes=("float32",))
class SendsGradientsInBfloat16(Right):
    def run_backward(self, ctx, g):
        return super().run_backward(ctx, g.bfloat16().to(g.dtype))


@breaks("HYB-DX", says="constant ratio 0.5")
class AveragesForwardAndBackward(Right):
    def run_backward(self, ctx, g):
        return super().run_backward(ctx, g) / 2


@breaks("HYB-DX-THROUGH", says="as if the base term were missing")
class WritesTheGradientOfX(Right):
    def run_forward(self, ctx, x, there):
        ctx.x = x
        return super().run_forward(ctx, x, there)

    def run_backward(self, ctx, g):
        d_x = super().run_backward(ctx, g)
        if ctx.x.is_leaf:
            return d_x
        ctx.x.retain_grad()
        return None


@breaks("HYB-LEAD", says="raised", source="NVIDIA-NeMo/Automodel HEAD 36044ad3d (ST5)")
class StumblesOverEmptyBatches(Right):
    def run_forward(self, ctx, x, there):
        _ = x.abs().max()
        return super().run_forward(ctx, x, there)


@breaks("HYB-LEAD", says="has shape")
class FlattensTheBatch(Right):
    def run_forward(self, ctx, x, there):
        return super().run_forward(ctx, x.reshape(-1, x.shape[-1]), there)


@breaks("HYB-LAYOUT", says="raised RuntimeError", source="NVIDIA/apex #1601 (ST1)")
class ViewsTheUpstreamGradient(Right):
    def run_backward(self, ctx, g):
        return super().run_backward(ctx, g.view(-1, g.shape[-1]).view(g.shape))


@breaks("HYB-LAYOUT", says="elements wrong", source="Dao-AILab/flash-attention #355 (ST3)")
class ReadsTheGradientAsIfPacked(Right):
    def run_backward(self, ctx, g):
        stride = [1]
        for size in reversed(g.shape[1:]):
            stride.insert(0, stride[0] * size)
        room = g.untyped_storage().nbytes() // g.element_size() - g.storage_offset()
        packed = g.as_strided(g.shape, stride) if room >= g.numel() and g.ndim else g
        return super().run_backward(ctx, packed)


@breaks("HYB-NO-WGRAD", says="got a gradient")
class TrainsTheWeight(Right):
    def layer_forward(self, layer, x):
        return layer.forward_module(x)


@breaks("HYB-AMP", says="the backward pass raised", dtypes=("float32",))
class ForgetsTheAutocastRegion(Right):
    def run_backward(self, ctx, g):
        ctx.autocast = False
        return super().run_backward(ctx, g)


@breaks("HYB-AMP", says="dtype torch.float32: expected torch.bfloat16", dtypes=("float32",))
class IgnoresAutocast(Right):
    def route(self, x, there, back):
        with torch.autocast("cpu", enabled=False):
            return super().route(x.float(), there, back)


@breaks("HYB-TWICE", says="the backward pass raised", phrase="runs backward only once")
class BackwardOnlyOnce(Right):
    def run_backward(self, ctx, g):
        d_x = super().run_backward(ctx, g)
        del ctx.back
        return d_x


@breaks("HYB-TWICE", says="elements wrong")
class AccumulatesInsideTheLayer(Right):
    def run_backward(self, ctx, g):
        ctx.sum = super().run_backward(ctx, g) + getattr(ctx, "sum", 0)
        return ctx.sum


@breaks("HYB-DOUBLE", says="as if the derivative of dX term were missing")
class HidesDXFromAutograd(Right):
    def check_graph(self, _g, _d_x):
        pass

    def run_backward(self, ctx, g):
        with torch.no_grad():
            return super().run_backward(ctx, g)
