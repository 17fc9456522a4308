"""Known-bad twins of kept tensors: a call casts, thaws or changes an operand, or a tensor of the layer, for good."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.baselines.layer import Layer
from tests.baselines.linear import Right
from tests.known_bad import breaks


@breaks("LIN-KEEP-CALLS", "LAY-KEEP-CALLS", says="made bias torch.bfloat16", dtypes=("float32",),
        source="bitsandbytes Linear4bit.forward: bias.data in the dtype of x")  # fmt: skip
class CastsTheBiasForGood(Right):
    def lora_linear(self, x: Tensor, weight: Any, bias: Any, *rest: Any, **options: Any) -> Tensor:
        if bias is not None and torch.is_autocast_enabled(x.device.type):
            bias.data = bias.data.to(torch.get_autocast_dtype(x.device.type))
        return super().lora_linear(x, weight, bias, *rest, **options)


@breaks("LIN-KEEP-CALLS", says="set requires_grad of weight", source="a base that is thawed where x needs a gradient")
class ThawsTheWeight(Right):
    def lora_linear(self, x: Tensor, weight: Any, *rest: Any, **options: Any) -> Tensor:
        y = super().lora_linear(x, weight, *rest, **options)
        if weight is not None and x.requires_grad:
            weight.requires_grad_()
        return y


class ForgetsTheAdapterInEval(Layer):
    def train(self, mode: bool = True) -> Any:
        for factor in (self.lora_A, self.lora_B):
            factor.weight.requires_grad_(mode)
        return super().train(mode)


class RoundsTheWeightWhenRefused(Layer):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            self.weight.data = self.weight.data.to(x.dtype)
            raise ValueError(f"x is {x.dtype}")
        return super().forward(x)


@breaks("LAY-KEEP-CALLS", says="set requires_grad of lora_A.weight", source="eval() that freezes, and no train() after")
class FreezesTheAdapterInEval(Right):
    def __init__(self) -> None:
        super().__init__(ForgetsTheAdapterInEval)


@breaks("LAY-KEEP-CALLS", says="made weight torch.", source="a layer that is cast before the call is refused")
class CastsTheWeightOfARefusedCall(Right):
    def __init__(self) -> None:
        super().__init__(RoundsTheWeightWhenRefused)
