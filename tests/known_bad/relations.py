"""Known-bad twins of the relations that need no oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.baselines.linear import Right
from tests.known_bad import both


@both("REL-PERMUTE", says="worst", source="a row index taken from the program id")
class WeighsRowsByPosition(Right):
    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        y = super().update(x, lora_A, lora_B, scale)
        return y * (1 + torch.arange(len(y)).to(y.dtype) / 16)[:, None]


@both("REL-LINEAR", says="worst", source="an activation left in")
class ClampsTheUpdate(Right):
    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return super().update(x, lora_A, lora_B, scale).clamp(-0.5, 0.5)


@both("REL-SCALE", says="worst", source="the scale clipped")
class ClipsTheScale(Right):
    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return super().update(x, lora_A, lora_B, min(scale, 2.0))


@both("REL-STACK", says="worst", source="the rank enters the result")
class NormalisesByRank(Right):
    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return super().update(x, lora_A, lora_B, scale) / lora_A.shape[0]
