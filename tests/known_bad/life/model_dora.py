"""Known-bad twins of the lives of DoRA adapters: a norm that is kept, a magnitude that is left behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import reference
from reference.dora import row_norm
from tests.baselines.lived_model import LivedModel
from tests.known_bad.life.registration import model_twin


@model_twin(
    "LIFE-MODEL-DORA",
    says="after load-plain",
    source="a magnitude that is set from the loaded weight",
    dtypes=("float64",),
)
class ResetsTheMagnitudeOfAPlainModel(LivedModel):
    def loaded(self, model: nn.Module, *, plain: bool) -> None:
        for layer in self.layers(model).values() if plain else ():
            with torch.no_grad():
                layer.lora_magnitude.copy_(row_norm(layer.base_weight))


@model_twin(
    "LIFE-MODEL-DORA",
    says="dm of",
    source="a second config freezes all but A and B",
    dtypes=("float64",),
)
class FreezesEarlierMagnitudes(LivedModel):
    def adopt(self, model: nn.Module, before: dict[str, Any]) -> None:
        super().adopt(model, before)
        for name in before:
            self.layers(model)[name].lora_magnitude.requires_grad_(False)


class Unmerges(reference.LinearLoRA):
    @torch.no_grad()
    def unmerge(self) -> None:
        if self.unmerged_weight is not None and self.lora_magnitude is not None:
            self.unmerged_weight = self.weight - self.scale * self.lora_B.weight @ self.lora_A.weight
        super().unmerge()


@model_twin("LIFE-MODEL-DORA", says="the weight of", source="a merge undone by subtracting B A", dtypes=("float64",))
class UnmergesWithoutTheMagnitude(LivedModel):
    layer = Unmerges


class KeepsTheNorm(reference.LinearLoRA):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.lora_magnitude is None or self.merged:
            return y
        base = self.base_weight.detach()
        present = row_norm(base + self.scale * self.lora_B.weight.detach() @ self.lora_A.weight.detach())
        kept = self.__dict__.setdefault("kept_norm", present)
        bias = 0 if self.bias is None else self.bias
        return bias + (y - bias) * (present / kept).to(y.dtype)


@model_twin("LIFE-MODEL-DORA", says="after", source="a norm computed at the first call", dtypes=("float64",))
class KeepsTheNormOfTheFirstCall(LivedModel):
    layer = KeepsTheNorm
