"""Known-bad twins of modes and layouts: a DoRA layer fails on a layout, dtype, mode or option."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.baselines.layer import Layer
from tests.baselines.linear import Right
from tests.known_bad.dora.registration import twin


@twin("DORA-LAYOUT", says="worst    y", source="Dao-AILab/flash-attention #355 (ST3)")
class WalksXAsIfPacked(Layer):
    def dora(self, x: Tensor) -> Tensor:
        if x.dim() > 1 and x.stride(-1) == 1 and not x.is_contiguous():
            x = x.as_strided(x.shape, torch.empty(x.shape).stride(), x.storage_offset())
        return super().dora(x)


@twin("DORA-MIXED", says="raised RuntimeError", dtypes=("bfloat16",), source="unslothai/unsloth (DT1)")
class CannotMixDtypes(Layer):
    def dora(self, x: Tensor) -> Tensor:
        if x.dtype != self.lora_A.weight.dtype:
            raise RuntimeError("expected m1 and m2 to have the same dtype")
        return super().dora(x)


@twin("DORA-MIXED", says="y has dtype", dtypes=("bfloat16",), source="a sum promoted to the magnitude's dtype")
class ReturnsTheMagnitudesDtype(Layer):
    def dora(self, x: Tensor) -> Tensor:
        return super().dora(x).to(self.lora_magnitude.dtype)


@twin("DORA-NEEDS", says="dA is None", source="an update computed without a graph where m is frozen")
class TrainsNothingBesideAFrozenMagnitude(Layer):
    def dora(self, x: Tensor) -> Tensor:
        if self.lora_magnitude.requires_grad or not x.requires_grad:
            return super().dora(x)
        with torch.no_grad():
            y = super().dora(x)
            weight = self.dora_weight().to(x.dtype)
        through = x @ weight.T
        return y + through - through.detach()


@twin("DORA-BIAS", says="worst    db", source="a bias added before the multiplication by the magnitude")
class MultipliesTheGradientOfTheBias(Layer):
    def dora(self, x: Tensor) -> Tensor:
        y = super().dora(x)
        if self.bias is None or not self.bias.requires_grad:
            return y
        return y + ((self.factor().detach() - 1) * (self.bias - self.bias.detach())).to(y.dtype)


@twin("DORA-TWICE", says="worst    twice dX", source="a gradient buffer that is accumulated into and never cleared")
class GrowsWithEachBackward(Layer):
    def dora(self, x: Tensor) -> Tensor:
        y, passes = super().dora(x), [0]

        def grow(g: Tensor) -> Tensor:
            passes[0] += 1
            return g * passes[0]

        if y.requires_grad:
            y.register_hook(grow)
        return y


@twin("DORA-TWICE", says="twice dm", source="a gradient overwritten instead of accumulated")
class OverwritesTheGradientOfTheMagnitude(Layer):
    def dora(self, x: Tensor) -> Tensor:
        y = super().dora(x)
        if y.requires_grad:
            y.register_hook(lambda _: setattr(self.lora_magnitude, "grad", None))
        return y


@twin("DORA-CKPT", says="raised", source="a forward that cannot be recomputed inside backward")
class CannotRunInsideBackward(Layer):
    def dora(self, x: Tensor) -> Tensor:
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError("a backward pass is under way")
        return super().dora(x)


@twin(
    "DORA-AMP",
    says="raised RuntimeError",
    dtypes=("float32",),
    source="a product by addmm_, which autocast does not cast",
)
class AddsInPlaceUnderAutocast(Layer):
    def dora(self, x: Tensor) -> Tensor:
        y = super().dora(x)
        middle = nn.functional.linear(x, self.lora_A.weight)
        if middle.dtype != self.lora_B.weight.dtype:
            raise RuntimeError("self and mat2 must have the same dtype")
        return y


@twin("DORA-OPTIONS", says="worst    y", source="alpha/r recomputed for the norm")
class TakesTheNormAtAlphaOverDim(Layer):
    def __init__(self, right: Right, linear: nn.Linear, dim: int, alpha: float, *args: Any) -> None:
        super().__init__(right, linear, dim, alpha, *args)
        self.plain = alpha / dim

    def factor(self) -> Tensor:
        scale, self.scale = self.scale, self.plain
        factor = super().factor()
        self.scale = scale
        return factor


@twin("DORA-OPTIONS", says="worst    y", source="a memory-efficient path that ignores the magnitude")
class ForgetsTheMagnitudeToSaveMemory(Layer):
    def forward(self, x: Tensor) -> Tensor:
        used, self.use_dora = self.use_dora, self.use_dora and not self.memory_efficient
        y = super().forward(x)
        self.use_dora = used
        return y


@twin("DORA-NONFINITE", says="worst", dtypes=("float32",), source="zero times a sum over all rows, added to each row")
class SpreadsNaNOverRows(Layer):
    def dora(self, x: Tensor) -> Tensor:
        return super().dora(x) + 0 * x.sum()
