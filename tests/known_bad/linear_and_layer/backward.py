"""Known-bad twins of backward: a gradient is zero, negated, doubled, unscaled or misplaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.baselines.linear import BackwardOperands, Right
from tests.known_bad import breaks

ALL = ("float64", "float32", "bfloat16", "float16")
EXACT = ("float64", "float32")


@breaks("LIN-BWD-DX", "LAY-BWD-DX", says="as if the base term were missing", source="zama-ai/concrete-ml #765 (GR2)")
class LosesTheBaseInDX(Right):
    def gradient_of_x(self, o: BackwardOperands) -> Tensor:
        whole = super().gradient_of_x(o)
        return whole if o.weight is None else whole - o.g @ o.weight


@breaks("LIN-BWD-DX", "LAY-BWD-DX", says="as if the adapter term were missing", source="x detached on the adapter path")
class LosesTheAdapterInDX(Right):
    def gradient_of_x(self, o: BackwardOperands) -> Tensor:
        whole = super().gradient_of_x(o)
        return whole if o.weight is None else o.g @ o.weight


@breaks("LIN-BWD-DX", "LAY-BWD-DX", says="worst", source="NVIDIA-NeMo/Automodel #217 (MK1)")
class OverwritesRowsOfDX(Right):
    def gradient_of_x(self, o: BackwardOperands) -> Tensor:
        dx = super().gradient_of_x(o)
        if dx.shape[1] > 64 and dx.shape[1] % 64 and dx.shape[0] > 1:
            dx = dx.clone()
            dx[1:, : dx.shape[1] % 64] = dx[:-1, -(dx.shape[1] % 64) :]
        return dx


@breaks("LIN-BWD-DX", "LAY-BWD-DX", says="zeros", dtypes=ALL, source="tolerances that accept a gradient of zero")
class ZeroesDX(Right):
    def gradient_of_x(self, o: BackwardOperands) -> Tensor:
        return 0 * super().gradient_of_x(o)


@breaks("LIN-BWD-DX", "LAY-BWD-DX", says="constant ratio -1", dtypes=ALL, source="a wrong sign")
class NegatesDX(Right):
    def gradient_of_x(self, o: BackwardOperands) -> Tensor:
        return -super().gradient_of_x(o)


@breaks("LIN-BWD-DX", "LAY-BWD-DX", says="constant ratio 2", dtypes=ALL, source="a term added twice")
class DoublesDX(Right):
    def gradient_of_x(self, o: BackwardOperands) -> Tensor:
        return 2 * super().gradient_of_x(o)


@breaks("LIN-BWD-DA", "LAY-BWD-DA", says="zeros", dtypes=ALL, source="tolerances that accept a gradient of zero")
class ZeroesDA(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return 0 * super().gradient_of_lora_A(o)


@breaks("LIN-BWD-DA", "LAY-BWD-DA", says="constant ratio -1", dtypes=ALL, source="a wrong sign")
class NegatesDA(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return -super().gradient_of_lora_A(o)


@breaks("LIN-BWD-DA", "LAY-BWD-DA", says="constant ratio 2", dtypes=ALL, source="a term added twice")
class DoublesDA(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return 2 * super().gradient_of_lora_A(o)


@breaks("LIN-BWD-DB", "LAY-BWD-DB", says="zeros", dtypes=ALL, source="tolerances that accept a gradient of zero")
class ZeroesDB(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return 0 * super().gradient_of_lora_B(o)


@breaks("LIN-BWD-DB", "LAY-BWD-DB", says="constant ratio -1", dtypes=ALL, source="a wrong sign")
class NegatesDB(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return -super().gradient_of_lora_B(o)


@breaks("LIN-BWD-DB", "LAY-BWD-DB", says="constant ratio 2", dtypes=ALL, source="a term added twice")
class DoublesDB(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return 2 * super().gradient_of_lora_B(o)


@breaks("LIN-BWD-DA", "LAY-BWD-DA", says="constant ratio", source="a scale applied only in forward")
class ForgetsTheScaleInDA(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_A(replace(o, scale=1.0))


@breaks("LIN-BWD-DA", "LAY-BWD-DA", says="worst", source="a wrong tail mask over M in the reduction")
class LosesTheTailOfMInDA(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        whole = len(o.g_adapter) // 16 * 16 or len(o.g_adapter)
        return super().gradient_of_lora_A(replace(o, g_adapter=o.g_adapter[:whole], x=o.x[:whole]))


@breaks("LIN-BWD-DA", "LAY-BWD-DA", says="worst", source="a mean over tokens in place of a sum")
class AveragesDA(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_A(o) / max(len(o.g_adapter), 1)


@breaks("LIN-BWD-DB", "LAY-BWD-DB", says="constant ratio", source="a scale applied only in forward")
class ForgetsTheScaleInDB(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_B(replace(o, scale=1.0))


@breaks("LIN-BWD-DB", "LAY-BWD-DB", says="constant ratio", source="a scale applied to S and again to dB")
class ScalesDBTwice(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_B(replace(o, scale=o.scale * o.scale))


@breaks("LIN-BWD-DB", "LAY-BWD-DB", says="worst", source="partial sums in the storage dtype, one of them lost")
class LosesAPartialOfDB(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_B(replace(o, g_adapter=o.g_adapter[:64], x=o.x[:64]))


@breaks(
    "LIN-BWD-LAYOUT",
    "LAY-BWD-LAYOUT",
    says="worst",
    source="Dao-AILab/flash-attention #355, traveller59/spconv #384 (ST3)",
)
class WalksGAsIfPacked(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        g = o.g_adapter
        if not g.is_contiguous() and 0 not in g.stride() and min(g.shape) > 1:
            g = g.as_strided(g.shape, (g.shape[1], 1), g.storage_offset())
        return super().gradient_of_lora_B(replace(o, g_adapter=g))


@breaks("LIN-BWD-LAYOUT", "LAY-BWD-LAYOUT", says="raised RuntimeError", source="NVIDIA/apex #1601 (ST1)")
class NeedsContiguousG(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        o.g_adapter.view(-1)
        return super().gradient_of_lora_A(o)


@breaks("LIN-BWD-LEAD", "LAY-BWD-LEAD", says="raised", source="NVIDIA-NeMo/Automodel (ST5): an empty batch")
class CannotReduceNothing(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        if not len(o.g_adapter):
            raise RuntimeError("cannot reshape tensor of 0 elements")
        return super().gradient_of_lora_A(o)


@breaks(
    "LIN-BWD-MIXED", "LAY-BWD-MIXED", says="worst", dtypes=("float64",), source="g cast to bfloat16 for every adapter"
)
class RoundsGToSixteenBits(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_B(replace(o, g_adapter=o.g_adapter.bfloat16().to(o.g_adapter.dtype)))


@breaks("LIN-BWD-SCALE", "LAY-BWD-SCALE", says="worst", source="the absolute scale")
class TakesALargeScaleForOne(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_A(replace(o, scale=o.scale if abs(o.scale) < 100 else 1.0))


@breaks("LIN-BWD-SCALE", "LAY-BWD-SCALE", says="worst", source="a scale stored as an integer")
class RoundsTheScale(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_B(replace(o, scale=float(round(o.scale))))


@breaks("LIN-BWD-SCALE", "LAY-BWD-SCALE", says="worst", dtypes=("float64",), source="Triton: a float is 32 bits")
class RoundsTheScaleTo32Bits(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_B(replace(o, scale=torch.tensor(o.scale).item()))


@breaks("LIN-BWD-ACCUM", "LAY-BWD-ACCUM", says="worst", source="a gradient overwritten instead of accumulated")
class OverwritesTheGradient(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        self.lora_A.grad = None
        return super().gradient_of_lora_A(o)

    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        self.lora_A = args[2]
        return super().lora_linear(x, *args, **options)


@breaks(
    "LIN-BWD-TWICE",
    "LAY-BWD-TWICE",
    says="second",
    source="unslothai/unsloth, axolotl #3800 (AL1): a saved tensor overwritten by backward",
)
class OverwritesXInBackward(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        result = super().gradient_of_lora_B(o)
        o.x.data.zero_()
        return result


@breaks(
    "LIN-BWD-NEEDS", "LAY-BWD-NEEDS", says="raised", source="a gradient computed from another that was not requested"
)
class NeedsAllGradients(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        if not o.lora_A.requires_grad:
            raise AttributeError("'NoneType' object has no attribute 'shape'")
        return super().gradient_of_lora_B(o)


class PretendsToBeLinear(torch.autograd.Function):
    """The given output; its first gradients are right, but their derivatives are zero."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        ctx.save_for_backward(x, lora_A, lora_B)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, lora_A, lora_B = ctx.saved_tensors
        # Zeros with a graph: autograd can differentiate them, but gets no second derivative of the layer.
        return g, 0 * x * x.sum(), 0 * lora_A * lora_A.sum(), 0 * lora_B * lora_B.sum()


@breaks("LIN-BWD-DOUBLE", "LAY-BWD-DOUBLE", says="second derivative", dtypes=EXACT, source="a backward that detaches")
class ForgetsSecondDerivatives(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return PretendsToBeLinear.apply(super().lora_linear(x, *args, **options), x, *args[2:4])


EXACT = ("float64", "float32")


class HalvesUnderAGraph(torch.autograd.Function):
    """The identity; its gradient is halved under create_graph."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g / 2 if torch.is_grad_enabled() else g


@breaks(
    "LIN-BWD-GRAPH",
    "LAY-BWD-GRAPH",
    says="constant ratio 0.5",
    dtypes=EXACT,
    source="a second path for create_graph=True",
)
class HasAnotherPathUnderAGraph(Right):
    def lora_linear(self, *args: Any, **options: Any) -> Tensor:
        return HalvesUnderAGraph.apply(super().lora_linear(*args, **options))  # type: ignore[no-any-return]


class DrawsUnderAGraph(torch.autograd.Function):
    """The identity; under create_graph a new dropout mask is applied to its gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, p: float) -> Tensor:
        ctx.p = p
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return torch.nn.functional.dropout(g, ctx.p) if torch.is_grad_enabled() else g, None


@breaks(
    "LIN-BWD-GRAPH",
    "LAY-BWD-GRAPH",
    says="with create_graph",
    dtypes=EXACT,
    source="a mask redrawn instead of saved",
)
class DropsOutAnewUnderAGraph(Right):
    def lora_linear(self, *args: Any, **options: Any) -> Tensor:
        y = super().lora_linear(*args, **options)
        return DrawsUnderAGraph.apply(y, options.get("dropout", 0.0))  # type: ignore[no-any-return]
