"""Known-bad twins of dropout between lora_A and lora_B: the mask is shared, kept from x Aᵀ, or scaled wrongly."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.baselines.conventions import DropsTheMiddle
from tests.known_bad import breaks


@breaks("LIN-DROP-MID", "LAY-DROP-MID", says="worst    y", source="inverted scaling omitted between A and B")
class DoesNotRescaleTheKeptMiddle(DropsTheMiddle):
    def dropped(self, middle: Tensor, p: float, training: bool) -> Tensor:
        return super().dropped(middle, p, training) * (1 - p if training else 1)


@breaks("LIN-DROP-MID", "LAY-DROP-MID", says="worst    d", source="the mask not applied to the gradient of x Aᵀ")
class IgnoresTheMaskOfTheMiddleInBackward(DropsTheMiddle):
    def dropped(self, middle: Tensor, p: float, training: bool) -> Tensor:
        if not training:
            return middle
        return middle + (super().dropped(middle, p, training) - middle).detach()


@breaks("LIN-DROP-MID", "LAY-DROP-MID", says="worst    y", source="dropout of W x + B A x in place of A x")
class DropsTheOutputInsteadOfTheMiddle(DropsTheMiddle):
    def dropped(self, middle: Tensor, p: float, training: bool) -> Tensor:
        kept = (torch.rand(middle.shape[-1]) >= p).to(middle.dtype) / (1 - p)
        return middle * kept * (1 + p) if training else middle
