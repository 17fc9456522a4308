"""Known-bad twins of group `hybrid`: products, routing, and what CustomLinear computes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.known_bad import breaks, hybrid_state, remote_names  # noqa: F401  (the group's other twins)
from tests.right_hybrid import Right

HYBRID = ("hybrid",)


@breaks("HYB-PROD-FWD", says="as if the bias term were missing", groups=HYBRID)
class ForgetsTheBias(Right):
    def forward_product(self, x, weight, bias, transposed):
        return super().forward_product(x, weight, None, transposed)


@breaks("HYB-PROD-FWD", says="as if the bias term were added twice", groups=HYBRID)
class AddsTheBiasTwice(Right):
    def forward_product(self, x, weight, bias, transposed):
        y = super().forward_product(x, weight, bias, transposed)
        return y if bias is None else y + bias


@breaks("HYB-PROD-FWD", says="raised RuntimeError", groups=HYBRID)
class IgnoresWeightTransposed(Right):
    def forward_product(self, x, weight, bias, transposed):
        return super().forward_product(x, weight, bias, False)


@breaks("HYB-PROD-FWD", says="error ÷ budget", groups=HYBRID, dtypes=("float32",))
class MultipliesInBfloat16(Right):
    def forward_product(self, x, weight, bias, transposed):
        return super().forward_product(x.bfloat16(), weight.bfloat16(), None, transposed).to(x.dtype) + (
            0 if bias is None else bias
        )


@breaks("HYB-PROD-BWD", says="raised RuntimeError", groups=HYBRID)
class MultipliesByTheTransposedWeight(Right):
    def backward_product(self, g, weight, transposed):
        return super().backward_product(g, weight, not transposed)


@breaks("HYB-PROD-BWD", says="constant ratio -1", groups=HYBRID)
class NegatesTheGradient(Right):
    def backward_product(self, g, weight, transposed):
        return -super().backward_product(g, weight, transposed)


@breaks("HYB-PROD-BWD", says="constant ratio 2", groups=HYBRID)
class DoublesTheGradient(Right):
    def backward_product(self, g, weight, transposed):
        return 2 * super().backward_product(g, weight, transposed)


@breaks("HYB-PROD-SHAPE", says="raised RuntimeError", groups=HYBRID, source="NVIDIA/apex #1601 (ST1)")
class FlattensByView(Right):
    def backward_product(self, g, weight, transposed):
        rows = super().backward_product(g.view(-1, g.shape[-1]), weight, transposed)
        return rows.view(*g.shape[:-1], -1)


@breaks("HYB-PROD-SHAPE", says="raised", groups=HYBRID, source="NVIDIA-NeMo/Automodel HEAD 36044ad3d (ST5)")
class TakesThreeDimensionsOnly(Right):
    def forward_product(self, x, weight, bias, transposed):
        batch, tokens, features = x.shape if x.ndim != 2 else (1, *x.shape)
        y = super().forward_product(x.reshape(batch * tokens, features), weight, bias, transposed)
        return y.reshape(*x.shape[:-1], y.shape[-1])


@breaks("HYB-PROD-INPUTS", says="was modified", groups=HYBRID)
class ScalesTheGradientInPlace(Right):
    def backward_product(self, g, weight, transposed):
        return super().backward_product(g.detach().mul_(2), weight, transposed) / 2


@breaks("HYB-ROUTE-FWD", says="was called 2 times", groups=HYBRID)
class RunsForwardTwice(Right):
    def run_forward(self, ctx, x, there):
        there(x)
        return super().run_forward(ctx, x, there)


@breaks("HYB-ROUTE-FWD", says="other values than x", groups=HYBRID)
class ScalesWhatItSends(Right):
    def run_forward(self, ctx, x, there):
        return super().run_forward(ctx, x * 2, there)


@breaks("HYB-ROUTE-FWD", says="forward called the backward module", groups=HYBRID)
class WarmsTheBackwardModuleUp(Right):
    def run_forward(self, ctx, x, there):
        y = super().run_forward(ctx, x, there)
        ctx.back(y)
        return y


@breaks("HYB-ROUTE-BWD", says="backward_module was called 0 times", groups=HYBRID)
class DifferentiatesWhatItCannotSee(Right):
    def run_backward(self, ctx, g):
        weight = ctx.back.matrix.neg() if hasattr(ctx.back, "matrix") else None
        return super().run_backward(ctx, g) if weight is None else g @ weight


@breaks(
    "HYB-ROUTE-BWD",
    says="zeros",
    groups=HYBRID,
    source="zama-ai/concrete-ml 23cb7dc4d (#765): x.detach() (GR2)",
)
class SendsADetachedInput(Right):
    def run_backward(self, ctx, g):
        return super().run_backward(ctx, g) * 0


@breaks("HYB-ROUTE-BWD", says="other values than the upstream gradient", groups=HYBRID)
class ClampsTheGradient(Right):
    def run_backward(self, ctx, g):
        return super().run_backward(ctx, g.clamp(-0.5, 0.5))


@breaks("HYB-ROUTE-SWAP", says="the new forward_module was called 0 times", groups=HYBRID)
class KeepsItsFirstModules(Right):
    def layer_forward(self, layer, x):
        if not hasattr(layer.forward_module, "tensors"):
            return F.linear(x, layer.weight if layer.weight.shape[1] == x.shape[-1] else layer.weight.t(), layer.bias)
        return super().layer_forward(layer, x)


@breaks("HYB-ROUTE-ONLY-X", says="got a gradient", groups=HYBRID)
class LeavesItToAutograd(Right):
    def route(self, x, there, _back):
        return there(x)


@breaks("HYB-ROUTE-DOUBLE", says="taking dX for a constant", groups=HYBRID)
class LosesTheGraphOfDX(Right):
    def check_graph(self, _g, _d_x):
        pass


@breaks("HYB-FWD", says="raised", groups=HYBRID, source="linkedin/Liger-Kernel 4a1677b8 (#931) (GR4)")
class NeedsGradMode(Right):
    def layer_forward(self, layer, x):
        if torch.is_grad_enabled():
            product = layer.forward_module
        return self.route(x, product, layer.backward_module)


@breaks("HYB-FWD", says="constant ratio 2", groups=HYBRID)
class DoublesTheOutput(Right):
    def layer_forward(self, layer, x):
        return super().layer_forward(layer, x) * 2


@breaks("HYB-DX", says="zeros", groups=HYBRID, source="zama-ai/concrete-ml 23cb7dc4d (#765): x.detach() (GR2)")
class LosesTheBaseGradient(Right):
    def layer_forward(self, layer, x):
        return super().layer_forward(layer, x.detach()) + x.sum() * 0


@breaks("HYB-DX", says="error ÷ budget", groups=HYBRID, dtypes=("float32",))
class SendsGradientsInBfloat16(Right):
    def run_backward(self, ctx, g):
        return super().run_backward(ctx, g.bfloat16().to(g.dtype))


@breaks("HYB-DX", says="constant ratio 0.5", groups=HYBRID)
class AveragesForwardAndBackward(Right):
    def run_backward(self, ctx, g):
        return super().run_backward(ctx, g) / 2


@breaks("HYB-DX-THROUGH", says="as if the base term were missing", groups=HYBRID)
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


@breaks("HYB-LEAD", says="raised", groups=HYBRID, source="NVIDIA-NeMo/Automodel HEAD 36044ad3d (ST5)")
class StumblesOverEmptyBatches(Right):
    def run_forward(self, ctx, x, there):
        _ = x.abs().max()
        return super().run_forward(ctx, x, there)


@breaks("HYB-LEAD", says="has shape", groups=HYBRID)
class FlattensTheBatch(Right):
    def run_forward(self, ctx, x, there):
        return super().run_forward(ctx, x.reshape(-1, x.shape[-1]), there)


@breaks("HYB-LAYOUT", says="raised RuntimeError", groups=HYBRID, source="NVIDIA/apex #1601 (ST1)")
class ViewsTheUpstreamGradient(Right):
    def run_backward(self, ctx, g):
        return super().run_backward(ctx, g.view(-1, g.shape[-1]).view(g.shape))


@breaks("HYB-LAYOUT", says="elements wrong", groups=HYBRID, source="Dao-AILab/flash-attention #355 (ST3)")
class ReadsTheGradientAsIfPacked(Right):
    def run_backward(self, ctx, g):
        stride = [1]
        for size in reversed(g.shape[1:]):
            stride.insert(0, stride[0] * size)
        room = g.untyped_storage().nbytes() // g.element_size() - g.storage_offset()
        packed = g.as_strided(g.shape, stride) if room >= g.numel() and g.ndim else g
        return super().run_backward(ctx, packed)


@breaks("HYB-NO-WGRAD", says="got a gradient", groups=HYBRID)
class TrainsTheWeight(Right):
    def layer_forward(self, layer, x):
        return layer.forward_module(x)


@breaks("HYB-AMP", says="the backward pass raised", groups=HYBRID, dtypes=("float32",))
class ForgetsTheAutocastRegion(Right):
    def run_backward(self, ctx, g):
        ctx.autocast = False
        return super().run_backward(ctx, g)


@breaks("HYB-AMP", says="dtype torch.float32: expected torch.bfloat16", groups=HYBRID, dtypes=("float32",))
class IgnoresAutocast(Right):
    def route(self, x, there, back):
        with torch.autocast("cpu", enabled=False):
            return super().route(x.float(), there, back)


@breaks("HYB-TWICE", says="the backward pass raised", groups=HYBRID)
class BackwardOnlyOnce(Right):
    def run_backward(self, ctx, g):
        d_x = super().run_backward(ctx, g)
        del ctx.back
        return d_x


@breaks("HYB-TWICE", says="elements wrong", groups=HYBRID)
class AccumulatesInsideTheLayer(Right):
    def run_backward(self, ctx, g):
        ctx.sum = super().run_backward(ctx, g) + getattr(ctx, "sum", 0)
        return ctx.sum


@breaks("HYB-DOUBLE", says="as if the derivative of dX term were missing", groups=HYBRID)
class HidesDXFromAutograd(Right):
    def check_graph(self, _g, _d_x):
        pass

    def run_backward(self, ctx, g):
        with torch.no_grad():
            return super().run_backward(ctx, g)


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
