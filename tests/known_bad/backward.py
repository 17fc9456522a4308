"""Known-bad twins of the backward pass: zero, negated, doubled, unscaled and misplaced gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.baselines.linear import Right
from tests.known_bad import both

ALL = ("float64", "float32", "bfloat16", "float16")


@both("BWD-DX", says="as if the base term were missing", source="zama-ai/concrete-ml #765 (GR2)")
class LosesTheBaseInDX(Right):
    def gradient_of_x(
        self,
        g: Tensor,
        weight: Any,
        g_adapter: Tensor,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        mask: Any,
    ) -> Tensor:
        whole = super().gradient_of_x(g, weight, g_adapter, lora_A, lora_B, scale, mask)
        return whole if weight is None else whole - g @ weight


@both("BWD-DX", says="as if the adapter term were missing", source="x detached on the adapter path")
class LosesTheAdapterInDX(Right):
    def gradient_of_x(
        self,
        g: Tensor,
        weight: Any,
        g_adapter: Tensor,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        mask: Any,
    ) -> Tensor:
        whole = super().gradient_of_x(g, weight, g_adapter, lora_A, lora_B, scale, mask)
        return whole if weight is None else g @ weight


@both("BWD-DX", says="worst", source="NVIDIA-NeMo/Automodel #217 (MK1)")
class OverwritesRowsOfDX(Right):
    def gradient_of_x(
        self,
        g: Tensor,
        weight: Any,
        g_adapter: Tensor,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        mask: Any,
    ) -> Tensor:
        dx = super().gradient_of_x(g, weight, g_adapter, lora_A, lora_B, scale, mask)
        if dx.shape[1] > 64 and dx.shape[1] % 64 and dx.shape[0] > 1:
            dx = dx.clone()
            dx[1:, : dx.shape[1] % 64] = dx[:-1, -(dx.shape[1] % 64) :]
        return dx


@both("BWD-DX", says="zeros", dtypes=ALL, source="tolerances that accept a gradient of zero")
class ZeroesDX(Right):
    def gradient_of_x(
        self,
        g: Tensor,
        weight: Any,
        g_adapter: Tensor,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        mask: Any,
    ) -> Tensor:
        return 0 * super().gradient_of_x(g, weight, g_adapter, lora_A, lora_B, scale, mask)


@both("BWD-DX", says="constant ratio -1", dtypes=ALL, source="a sign")
class NegatesDX(Right):
    def gradient_of_x(
        self,
        g: Tensor,
        weight: Any,
        g_adapter: Tensor,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        mask: Any,
    ) -> Tensor:
        return -super().gradient_of_x(g, weight, g_adapter, lora_A, lora_B, scale, mask)


@both("BWD-DX", says="constant ratio 2", dtypes=ALL, source="a term counted twice")
class DoublesDX(Right):
    def gradient_of_x(
        self,
        g: Tensor,
        weight: Any,
        g_adapter: Tensor,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        mask: Any,
    ) -> Tensor:
        return 2 * super().gradient_of_x(g, weight, g_adapter, lora_A, lora_B, scale, mask)


@both("BWD-DA", says="zeros", dtypes=ALL, source="tolerances that accept a gradient of zero")
class ZeroesDA(Right):
    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return 0 * super().gradient_of_lora_A(g, x, lora_A, lora_B, scale)


@both("BWD-DA", says="constant ratio -1", dtypes=ALL, source="a sign")
class NegatesDA(Right):
    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return -super().gradient_of_lora_A(g, x, lora_A, lora_B, scale)


@both("BWD-DA", says="constant ratio 2", dtypes=ALL, source="a term counted twice")
class DoublesDA(Right):
    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return 2 * super().gradient_of_lora_A(g, x, lora_A, lora_B, scale)


@both("BWD-DB", says="zeros", dtypes=ALL, source="tolerances that accept a gradient of zero")
class ZeroesDB(Right):
    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return 0 * super().gradient_of_lora_B(g, x, lora_A, lora_B, scale)


@both("BWD-DB", says="constant ratio -1", dtypes=ALL, source="a sign")
class NegatesDB(Right):
    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return -super().gradient_of_lora_B(g, x, lora_A, lora_B, scale)


@both("BWD-DB", says="constant ratio 2", dtypes=ALL, source="a term counted twice")
class DoublesDB(Right):
    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return 2 * super().gradient_of_lora_B(g, x, lora_A, lora_B, scale)


@both("BWD-DA", says="constant ratio", source="scale applied in forward only")
class ForgetsTheScaleInDA(Right):
    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return super().gradient_of_lora_A(g, x, lora_A, lora_B, 1.0)


@both("BWD-DA", says="worst", source="a tail mask over M in the reduction")
class LosesTheTailOfMInDA(Right):
    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        whole = len(g) // 16 * 16 or len(g)
        return super().gradient_of_lora_A(g[:whole], x[:whole], lora_A, lora_B, scale)


@both("BWD-DA", says="worst", source="averaging over tokens")
class AveragesDA(Right):
    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return super().gradient_of_lora_A(g, x, lora_A, lora_B, scale) / max(len(g), 1)


@both("BWD-DB", says="constant ratio", source="scale applied in forward only")
class ForgetsTheScaleInDB(Right):
    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return super().gradient_of_lora_B(g, x, lora_A, lora_B, 1.0)


@both("BWD-DB", says="constant ratio", source="scale applied to S, and again to dB")
class ScalesDBTwice(Right):
    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return super().gradient_of_lora_B(g, x, lora_A, lora_B, scale * scale)


@both("BWD-DB", says="worst", source="split partials summed in the storage dtype, one lost")
class LosesAPartialOfDB(Right):
    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return super().gradient_of_lora_B(g[:64], x[:64], lora_A, lora_B, scale)


@both("BWD-LAYOUT", says="worst", source="Dao-AILab/flash-attention #355, traveller59/spconv #384 (ST3)")
class WalksGAsIfPacked(Right):
    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        if not g.is_contiguous() and 0 not in g.stride() and min(g.shape) > 1:
            g = g.as_strided(g.shape, (g.shape[1], 1), g.storage_offset())
        return super().gradient_of_lora_B(g, x, lora_A, lora_B, scale)


@both("BWD-LAYOUT", says="raised RuntimeError", source="NVIDIA/apex #1601 (ST1)")
class NeedsContiguousG(Right):
    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        g.view(-1)
        return super().gradient_of_lora_A(g, x, lora_A, lora_B, scale)


@both("BWD-LEAD", says="raised", source="NVIDIA-NeMo/Automodel (ST5): an empty batch")
class CannotReduceNothing(Right):
    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        if not len(g):
            raise RuntimeError("cannot reshape tensor of 0 elements")
        return super().gradient_of_lora_A(g, x, lora_A, lora_B, scale)


@both("BWD-MIXED", says="worst", dtypes=("float64",), source="g cast to bfloat16 for every adapter")
class RoundsGToSixteenBits(Right):
    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return super().gradient_of_lora_B(g.bfloat16().to(g.dtype), x, lora_A, lora_B, scale)


@both("BWD-SCALE", says="worst", source="the absolute scale")
class TakesALargeScaleForOne(Right):
    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return super().gradient_of_lora_A(g, x, lora_A, lora_B, scale if abs(scale) < 100 else 1.0)


@both("BWD-SCALE", says="worst", source="scale kept as an integer")
class RoundsTheScale(Right):
    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return super().gradient_of_lora_B(g, x, lora_A, lora_B, float(round(scale)))


@both("BWD-ACCUM", says="worst", source="a gradient written, not accumulated")
class OverwritesTheGradient(Right):
    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        self.lora_A.grad = None
        return super().gradient_of_lora_A(g, x, lora_A, lora_B, scale)

    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        self.lora_A = args[2]
        return super().lora_linear(x, *args, **options)


@both(
    "BWD-TWICE",
    says="second",
    source="unslothai/unsloth, axolotl #3800 (AL1): a saved tensor overwritten by backward",
)
class OverwritesXInBackward(Right):
    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        result = super().gradient_of_lora_B(g, x, lora_A, lora_B, scale)
        x.data.zero_()
        return result


@both("BWD-NEEDS", says="raised", source="a gradient computed through one that was not asked for")
class NeedsAllGradients(Right):
    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        if not lora_A.requires_grad:
            raise AttributeError("'NoneType' object has no attribute 'shape'")
        return super().gradient_of_lora_B(g, x, lora_A, lora_B, scale)
