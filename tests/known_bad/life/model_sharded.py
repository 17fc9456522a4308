"""Known-bad twins of files of sharded models: what holds of a whole model, forgotten once it is sharded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reference.sharded import is_sharded
from tests.baselines.lived_model import LivedModel
from tests.known_bad.life.registration import model_twin


def sharded(model: nn.Module) -> bool:
    """Whether a model is sharded."""
    return any(map(is_sharded, model.parameters()))


@model_twin(
    "LIFE-MODEL-SHARDED",
    says="not exactly the adapters require grad",
    source="a load that thaws every sharded parameter",
    dtypes=("float64",),
)
class ThawsAShardedModel(LivedModel):
    def loaded(self, model: nn.Module, *, plain: bool) -> None:
        if sharded(model):
            model.requires_grad_(True)


@model_twin(
    "LIFE-MODEL-SHARDED", says="weight of the sharded model", source="a load that leaves a merge", dtypes=("float64",)
)
class LeavesAMergeInShards(LivedModel):
    def load_adapter(self, model: nn.Module, path: Any) -> Any:
        merged = {name: layer.weight.detach().clone() for name, layer in self.layers(model).items() if layer.merged}
        found = super().load_adapter(model, path)
        with torch.no_grad():
            for name, weight in merged.items() if sharded(model) else ():
                self.layers(model)[name].weight.copy_(weight)
        return found


@model_twin(
    "LIFE-MODEL-SHARDED", says="after", source="a gathered adapter in the dtype of the weight", dtypes=("float64",)
)
class SavesShardsInTheDtypeOfTheWeight(LivedModel):
    def save_adapter(self, model: nn.Module, config: Any, path: Any) -> None:
        if sharded(model):
            for layer in self.layers(model).values():
                with torch.no_grad():
                    layer.lora_A.weight.copy_(layer.lora_A.weight.bfloat16().to(layer.lora_A.weight.dtype))
        super().save_adapter(model, config, path)


@model_twin(
    "LIFE-MODEL-SHARDED", says="after", source="only the first config's adapters are gathered", dtypes=("float64",)
)
class SavesZerosForTheHead(LivedModel):
    def save_adapter(self, model: nn.Module, config: Any, path: Any) -> None:
        with torch.no_grad():
            if sharded(model) and len(self.layers(model)) > 2:
                self.layers(model)["head"].lora_B.weight.mul_(0)
        super().save_adapter(model, config, path)
