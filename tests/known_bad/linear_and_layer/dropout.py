"""Known-bad twins of dropout: dropout draws a wrong mask or scales wrongly, or backward ignores the mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.baselines.linear import BackwardOperands, Right
from tests.known_bad import breaks

GENERATOR = torch.Generator().manual_seed(1)  # torch.manual_seed does not reset it


@breaks(
    "LIN-DROP-MASK", "LAY-DROP-MASK", says="same elements", source="pytorch/torchtune #995, paiml/aprender #2170 (DR1)"
)
class NeverDrops(Right):
    def mask(self, like: Tensor, p: float) -> Tensor:
        return torch.ones_like(like) / (1 - p)


@breaks(
    "LIN-DROP-MASK",
    "LAY-DROP-MASK",
    says="as if dropout had not acted",
    source="a probability that is stored and never used",
)
class IgnoresDropout(Right):
    def mask(self, like: Tensor, p: float) -> Tensor:
        return torch.ones_like(like)


@breaks("LIN-DROP-MASK", "LAY-DROP-MASK", says="worst", source="inverted scaling omitted")
class DoesNotRescaleTheKept(Right):
    def mask(self, like: Tensor, p: float) -> Tensor:
        return (torch.rand(like.shape) >= p).to(like.dtype)


@breaks("LIN-DROP-MASK", "LAY-DROP-MASK", says="dropped", source="one mask for every row")
class SharesOneMaskForAllRows(Right):
    def mask(self, like: Tensor, p: float) -> Tensor:
        return super().mask(like[:1], p).expand_as(like).contiguous()


@breaks("LIN-DROP-MASK", "LAY-DROP-MASK", says="same elements", source="a seed fixed at import")
class DropsTheSameEachTime(Right):
    def mask(self, like: Tensor, p: float) -> Tensor:
        kept = torch.rand(like.shape, generator=torch.Generator().manual_seed(0)) >= p
        return kept.to(like.dtype) / (1 - p)


@breaks("LIN-DROP-BWD", "LAY-DROP-BWD", says="worst", source="a mask redrawn in backward")
class DrawsANewMaskInBackward(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        kept = (torch.rand(o.g_adapter.shape) >= 0.5).to(o.g_adapter.dtype) * 2
        dropped = bool((o.g_adapter == 0).any()) or bool((o.x == 0).any())
        return super().gradient_of_lora_B(replace(o, g_adapter=o.g_adapter * kept if dropped else o.g_adapter))


@breaks(
    "LIN-DROP-REL",
    "LAY-DROP-REL",
    says="worst",
    dtypes=("float64", "float32"),
    source="KohakuBlueleaf/LyCORIS #23 (SC4)",
)
class DropsTheBaseToo(Right):
    def total(self, base: Tensor, update: Tensor) -> Tensor:
        kept = (update != 0).to(base.dtype)
        return super().total(base * kept, update)


@breaks("LIN-DROP-POST", "LAY-DROP-POST", says="worst", source="KohakuBlueleaf/LyCORIS #23 (SC4)")
class DropsTheBaseWithTheUpdate(Right):
    def total(self, base: Tensor, update: Tensor) -> Tensor:
        return super().total(base * (update != 0).to(base.dtype), update)


@breaks("LIN-DROP-ALL", "LAY-DROP-ALL", says="NaN", source="1/(1-p) at p = 1")
class DividesByZeroAtOne(Right):
    def mask(self, like: Tensor, p: float) -> Tensor:
        return (torch.rand(like.shape) >= p).to(like.dtype) * torch.tensor(1.0).div(1 - p).to(like.dtype)


@breaks("LIN-DROP-EVAL", "LAY-DROP-EVAL", says="worst", source="NVIDIA-NeMo/Automodel (DR2)")
class DropsInEvaluation(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return super().lora_linear(x, *args, **{**options, "training": True})


@breaks("LIN-DROP-SEED", "LAY-DROP-SEED", says="one seed differ", source="a private random generator")
class IgnoresTheSeed(Right):
    def reset(self) -> None:
        GENERATOR.manual_seed(1)

    def mask(self, like: Tensor, p: float) -> Tensor:
        return (torch.rand(like.shape, generator=GENERATOR) >= p).to(like.dtype) / (1 - p)
