"""Known-bad twins of the lives of adapted Conv1D layers: a weight [in, out] taken for one [out, in], or kept."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

import reference
from tests.baselines.lived_model import LivedModel
from tests.known_bad.life.registration import model_twin


class ForgetsInCopies(reference.LinearLoRA):
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = copy._reconstruct(self, memo, *self.__reduce_ex__(4))  # type: ignore[attr-defined]
        made.fan_in_fan_out = self.fan_in_fan_out and self.in_features != self.out_features
        return made


@model_twin(
    "LIFE-MODEL-CONV1D", says="after deepcopy", source="fan_in_fan_out guessed from the shape", dtypes=("float64",)
)
class CopiesOfSquareWeightsAreTurned(LivedModel):
    layer = ForgetsInCopies


@model_twin("LIFE-MODEL-CONV1D", says="after load-plain", source="a file without fan_in_fan_out", dtypes=("float64",))
class LoadsSquareWeightsTurned(LivedModel):
    def loaded(self, model: nn.Module, *, plain: bool) -> None:
        for layer in self.layers(model).values() if plain else ():
            layer.fan_in_fan_out = layer.fan_in_fan_out and layer.in_features != layer.out_features


class KeepsTheTurnedWeight(reference.LinearLoRA):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.fan_in_fan_out or self.merged:
            return y
        kept = self.__dict__.setdefault("kept_turned", self.weight.detach().t().contiguous())
        return y + nn.functional.linear(x, (kept - self.weight.t()).to(x.dtype))


@model_twin(
    "LIFE-MODEL-CONV1D", says="after", source="a contiguous transpose, made at the first call", dtypes=("float64",)
)
class KeepsATransposedCopy(LivedModel):
    layer = KeepsTheTurnedWeight
