"""Known-bad twins of dropout between lora_A and lora_B: the mask is scaled wrongly, or left out of backward."""

from __future__ import annotations

from torch import Tensor

from tests.baselines.conventions import DropsTheMiddle
from tests.known_bad import breaks

WIDE = ("float64", "float32")


@breaks(
    "LIN-DROP-MID", "LAY-DROP-MID", says="worst    y", dtypes=WIDE, source="inverted scaling omitted between A and B"
)
class DoesNotRescaleTheKeptMiddle(DropsTheMiddle):
    def dropped(self, middle: Tensor, p: float, training: bool) -> Tensor:
        return super().dropped(middle, p, training) * (1 - p if training else 1)


@breaks(
    "LIN-DROP-MID",
    "LAY-DROP-MID",
    says="worst    d",
    dtypes=WIDE,
    source="the mask not applied to the gradient of x Aᵀ",
)
class IgnoresTheMaskOfTheMiddleInBackward(DropsTheMiddle):
    def dropped(self, middle: Tensor, p: float, training: bool) -> Tensor:
        if not training:
            return middle
        return middle + (super().dropped(middle, p, training) - middle).detach()


@breaks("LIN-DROP-MID", "LAY-DROP-MID", says="worst    y", dtypes=WIDE, source="a second division by 1-p")
class RescalesTheKeptMiddleTwice(DropsTheMiddle):
    def dropped(self, middle: Tensor, p: float, training: bool) -> Tensor:
        return super().dropped(middle, p, training) / (1 - p if training else 1)
