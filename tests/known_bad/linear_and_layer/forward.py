"""Known-bad twins of forward: the output lacks a term, a scale, a tail or a special value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.baselines.linear import Right, UpdateOperands
from tests.known_bad import breaks


@breaks(
    "LIN-FWD", "LAY-FWD", says="the adapter term", source="Blaizzy/mlx-vlm #845, rasbt/LLMs-from-scratch #821 (SC1)"
)
class MultipliesByAlphaAlone(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return super().update(replace(o, scale=o.scale * o.lora_A.shape[0]))


@breaks("LIN-FWD", "LAY-FWD", says="as if the adapter term were added twice", source="huggingface/peft #878 (FW1)")
class AddsTheAdapterTwice(Right):
    def total(self, base: Tensor, update: Tensor) -> Tensor:
        return super().total(super().total(base, update), update)


@breaks("LIN-FWD", "LAY-FWD", says="as if the bias term were missing", source="pytorch/torchtune #2678 (FW2)")
class DropsTheBias(Right):
    def base(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        return super().base(x, weight, None)


@breaks("LIN-FWD", "LAY-FWD", says="as if the adapter term were missing", source="unslothai/unsloth #57 (MO1) reversed")
class ForgetsTheAdapter(Right):
    def total(self, base: Tensor, update: Tensor) -> Tensor:
        return base


@breaks("LIN-FWD", "LAY-FWD", says="the last", source="a wrong tail mask over N")
class LosesTheLastColumn(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        y = super().update(o)
        if y.shape[1] % 16 == 1 and y.shape[1] > 16:
            y[:, -1] = 0
        return y


@breaks("LIN-FWD", "LAY-FWD", says="k=64", source="NVIDIA-NeMo/Automodel #217 (MK1): a tail mask over K")
class LosesTheTailOfK(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        block, (m, k) = 64, o.x.shape
        if k > block and k % block and m > 1:
            whole = k // block * block
            o = replace(o, x=o.x[:, :whole], lora_A=o.lora_A[:, :whole])
        return super().update(o)


@breaks("LIN-FWD", "LAY-FWD", says="worst", source="rank padded to a power of two")
class LosesRanksBeyondSixteen(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return super().update(replace(o, lora_A=o.lora_A[:16], lora_B=o.lora_B[:, :16]))


@breaks("LIN-FWD", "LAY-FWD", says="worst", dtypes=("float64", "float32"), source="a TF32 or half-precision product")
class MultipliesInHalfPrecision(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return super().update(replace(o, x=o.x.half(), lora_A=o.lora_A.half(), lora_B=o.lora_B.half())).to(o.x.dtype)


@breaks("LIN-FWD", "LAY-FWD", says="worst", dtypes=("bfloat16", "float16"), source="accumulation in the storage dtype")
class AccumulatesInSixteenBits(Right):
    def base(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        y = x.new_zeros(x.shape[0], weight.shape[0])
        for k in range(x.shape[1]):
            y += x[:, k : k + 1] * weight[:, k]
        return y if bias is None else y + bias


@breaks("LIN-FWD", "LAY-FWD", says="raised UnboundLocalError", source="linkedin/Liger-Kernel #931 (GR4)")
class NeedsGradMode(Right):
    def base(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        if not self.grad_mode:
            raise UnboundLocalError("cannot access local variable 'saved'")
        return super().base(x, weight, bias)

    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        self.grad_mode = torch.is_grad_enabled()
        return super().lora_linear(x, *args, **options)


@breaks("LIN-FWD-LEAD", "LAY-FWD-LEAD", says="raised", source="NVIDIA-NeMo/Automodel LoRATritonFunction (ST5)")
class FlattensThreeDimensionsOnly(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if x.dim() not in (2, 3):
            raise RuntimeError(f"expected a matrix, got {x.dim()} dimensions")
        return super().lora_linear(x, *args, **options)


@breaks("LIN-FWD-LEAD", "LAY-FWD-LEAD", says="shape", source="NVIDIA-NeMo/Megatron-Bridge #1628 (ML5)")
class ReturnsAMatrix(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        y = super().lora_linear(x, *args, **options)
        return y.reshape(-1, y.shape[-1]) if y.dim() == 4 else y


@breaks("LIN-FWD-LAYOUT", "LAY-FWD-LAYOUT", says="worst", source="Dao-AILab/flash-attention #355 (ST3), forward")
class WalksXAsIfPacked(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if x.dim() > 1 and not x.is_contiguous() and x.stride(-1) == 1 and 0 not in x.stride():
            x = x.as_strided(x.shape, torch.empty(x.shape).stride(), x.storage_offset())
        return super().lora_linear(x, *args, **options)


@breaks("LIN-FWD-MIXED", "LAY-FWD-MIXED", says="dtype", source="unslothai/unsloth (DT1)")
class ReturnsTheAdapterDtype(Right):
    def total(self, base: Tensor, update: Tensor) -> Tensor:
        return base.to(update.dtype) + update


@breaks(
    "LIN-FWD-MIXED",
    "LAY-FWD-MIXED",
    says="raised RuntimeError",
    source="NVIDIA-NeMo/Automodel memory-efficient path (DT1)",
)
class CannotMixDtypes(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        if o.x.dtype != self.seen:
            raise RuntimeError("expected m1 and m2 to have the same dtype")
        return super().update(o)

    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        self.seen = x.dtype
        return super().lora_linear(x, *args, **options)


@breaks("LIN-FWD-SCALE", "LAY-FWD-SCALE", says="worst", source="a scale of 0 replaced by the default")
class TakesScaleZeroForOne(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return super().update(replace(o, scale=o.scale or 1.0))


@breaks("LIN-FWD-SCALE", "LAY-FWD-SCALE", says="worst", source="KohakuBlueleaf/LyCORIS #23 (SC4)")
class ScalesTheBaseToo(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        weight, bias, lora_A, lora_B, scale = args
        if weight is None or scale == 1:
            return super().lora_linear(x, *args, **options)
        y = super().lora_linear(x, weight, bias, lora_A, lora_B, 1.0, **options)
        return y * scale


@breaks("LIN-FWD-SCALE", "LAY-FWD-SCALE", says="worst", dtypes=("float64",), source="Triton: a float is 32 bits")
class RoundsTheScaleTo32Bits(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return super().update(replace(o, scale=torch.tensor(o.scale).item()))


@breaks("LIN-FWD-NONFINITE", "LAY-FWD-NONFINITE", says="finite", source="a NaN guard that hides errors")
class ReplacesNaN(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return super().lora_linear(torch.nan_to_num(x), *args, **options)


@breaks("LIN-FWD-NONFINITE", "LAY-FWD-NONFINITE", says="NaN", source="a mask applied by multiplication")
class SpreadsNaNOverRows(Right):
    def total(self, base: Tensor, update: Tensor) -> Tensor:
        return super().total(base, update) + 0 * base.sum(0)


@breaks("LIN-FWD-ZERO", "LAY-FWD-ZERO", says="worst", source="a needless epsilon")
class AddsAnEpsilon(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return super().update(o) + 2.0**-6


@breaks("LIN-FWD-DENORMAL", "LAY-FWD-DENORMAL", says="zeros", dtypes=("float32", "float16"), source="flush to zero")
class FlushesSubnormals(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        tiny = torch.finfo(x.dtype).tiny
        return super().lora_linear(torch.where(x.abs() < tiny, 0, x), *args, **options)


@breaks("LIN-FWD-OVERFLOW", "LAY-FWD-OVERFLOW", says="infinite", dtypes=("float16",), source="accumulation in float16")
class OverflowsInPartialSums(Right):
    def base(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        half = x.shape[1] // 2
        y = x[:, :half] @ weight[:, :half].T * 2 + (x[:, half:] @ weight[:, half:].T) * 2
        return y / 2 if bias is None else y / 2 + bias


@breaks(
    "LIN-FWD-OVERFLOW-ORDER",
    "LAY-FWD-OVERFLOW-ORDER",
    says="infinite",
    dtypes=("float16",),
    source="a scale applied last, in float16",
)
class ScalesAfterOverflow(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return (o.x @ o.lora_A.T) @ o.lora_B.T * o.scale
