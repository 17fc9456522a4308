"""Known-bad twins of backward: gradients of other rows or adapters, of padding, of idle adapters, of the weight."""

from __future__ import annotations

import torch

from tests.baselines.batched import Call, Right
from tests.known_bad import breaks


@breaks("BAT-BWD-DX", says="as if the base term were missing", source="zama-ai/concrete-ml #765 (GR2)")
class LosesTheBaseInDX(Right):
    def back(self, g, weight):
        return torch.zeros_like(g @ weight)


@breaks("BAT-BWD-DX", says="elements wrong", source="the base under no_grad for rows without an adapter")
class GivesRowsOfNoneNoGradient(Right):
    def backward(self, g, x, index, *operands):
        d_x, d_A, d_B = super().backward(g, x, index, *operands)
        return d_x * (index >= 0)[:, None].to(d_x.dtype), d_A, d_B


@breaks("BAT-BWD-DX", says="elements wrong", source="one scale for all adapters, in backward only")
class BacksThroughTheScaleOfTheFirst(Right):
    def backward(self, g, x, index, weight, A, B, scale, ranks):
        return super().backward(g, x, index, weight, A, B, scale[:1].expand(len(scale)), ranks)


@breaks("BAT-BWD-DA", says="elements wrong", source="the gradient of every adapter summed over all rows")
class SumsDAOverAllRows(Right):
    def backward(self, g, x, index, *operands):
        self.all = g, x
        return super().backward(g, x, index, *operands)

    def d_A(self, g, x, B, s):
        return super().d_A(*self.all, B, s)


@breaks("BAT-BWD-DA", says="elements wrong", source="the scale applied in dB only")
class ForgetsTheScaleInDA(Right):
    def d_A(self, g, x, B, s):
        return super().d_A(g, x, B, 1.0)


@breaks("BAT-BWD-DB", says="elements wrong", source="segment starts off by one in the weight gradient")
class LeavesOutTheFirstRowInDB(Right):
    def d_B(self, g, x, A, s):
        return super().d_B(g[1:], x[1:], A, s)


@breaks("BAT-BWD-DB", says="elements wrong", source="S of an earlier adapter reused")
class ReusesTheMiddleInDB(Right):
    def backward(self, g, x, index, weight, A, *operands):
        self.first = A[0]
        return super().backward(g, x, index, weight, A, *operands)

    def d_B(self, g, x, A, s):
        return super().d_B(g, x, self.first[: len(A)], s)


@breaks("BAT-BWD-LEAD", says="", source="axolotl: a gradient of an empty batch is None")
class GivesNoGradientForAnEmptyBatch(Right):
    def backward(self, g, x, index, *operands):
        found = super().backward(g, x, index, *operands)
        return found if len(x) else (found[0], None, None)


@breaks("BAT-BWD-LAYOUT", says="elements wrong", source="Dao-AILab/flash-attention #355 (ST3)")
class WalksGAsIfPacked(Right):
    def backward(self, g, *operands):
        if not g.is_contiguous() and 0 not in g.stride():
            g = g.as_strided(g.shape, torch.empty(g.shape).stride(), g.storage_offset())
        return super().backward(g, *operands)


@breaks("BAT-BWD-MIXED", says="raised RuntimeError", source="NVIDIA-NeMo/Automodel (DT1), backward")
class CannotMixDtypesInBackward(Right):
    def back_update(self, g, A, B, s):
        return (g @ B) @ A * s


@breaks("BAT-BWD-PADDING", says="NaN", source="gradient memory not cleared beyond a rank")
class LeavesThePaddingUnwritten(Right):
    def empty(self, like):
        return torch.empty_like(like)


@breaks("BAT-BWD-PADDING", says="elements wrong", source="the whole padded rank multiplied in backward")
class LearnsThePadding(Right):
    def backward(self, g, x, index, weight, A, B, scale, ranks):
        return super().backward(g, x, index, weight, A, B, scale, None)


@breaks("BAT-BWD-IDLE", says="expected zeros", source="an adapter without rows is left out of the graph")
class GivesIdleAdaptersNone(Right):
    def backward(self, g, x, index, weight, A, *operands):
        found = super().backward(g, x, index, weight, A, *operands)
        return found if (index >= 0).any() else (found[0], None, None)


@breaks("BAT-BWD-IDLE", says="is not zero for adapters", source="pytorch/pytorch #193633: idle groups never written")
class LeavesIdleAdaptersUnwritten(Right):
    def empty(self, like):
        return torch.empty_like(like)

    def used(self, index, count):
        return [adapter for adapter in range(count) if (index == adapter).any()]


@breaks("BAT-BWD-NEEDS", says="None", source="dA computed only where x needs a gradient too")
class NeedsAGradientOfX(Right):
    @property
    def node(self):
        return OnlyWithX


class OnlyWithX(Call):
    """Gradients of the adapters only where x has one."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        found = Call.backward(ctx, g)
        return found if ctx.needs_input_grad[1] else (None,) * len(found)


@breaks("BAT-BWD-FROZEN", says="weight got a gradient")
class TrainsTheWeight(Right):
    def d_weight(self, g, x):
        return g.T @ x


@breaks("BAT-BWD-TWICE", says="", source="saved tensors freed by the first backward pass")
class BacksOnce(Right):
    def backward(self, g, x, *operands):
        found = super().backward(g, x, *operands)
        if getattr(x, "used", False):
            raise RuntimeError("the sorted rows were already freed")
        x.used = True
        return found


@breaks("BAT-BWD-TWICE", says="elements wrong", source="gradients collected in a buffer that is kept")
class AddsToTheGradientsOfTheFirstPass(Right):
    def backward(self, g, x, *operands):
        found = super().backward(g, x, *operands)
        before = getattr(x, "before", None)
        x.before = found[1]
        return (found[0], found[1] if before is None else found[1] + before, found[2])
