"""Known-bad twins of calls that are refused after they have changed a model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

import reference
from tests.baselines.lived_model import LivedModel
from tests.known_bad.life.registration import model_twin

refused_twin = partial(model_twin, "LIFE-MODEL-REFUSED")


@refused_twin(says="does not require grad", source="frozen before the layers are checked")
class FreezesBeforeItRefuses(LivedModel):
    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> int:
        model.requires_grad_(False)
        return super().apply_lora_to_linear_modules(model, peft_config)


@refused_twin(says="the model has the tensors", source="layers adapted one by one")
class AdaptsTheFirstLayersOfARefusedCall(LivedModel):
    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> int:
        for name in peft_config.target_modules:
            one = reference.PeftConfig.from_dict({**peft_config.to_dict(), "target_modules": [name]})
            super().apply_lora_to_linear_modules(model, one)
        return len(peft_config.target_modules)


@refused_twin(says="raised nothing", source="a second adapter for a layer in place of the first")
class SkipsAdaptedLayers(LivedModel):
    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> int:
        try:
            return super().apply_lora_to_linear_modules(model, peft_config)
        except ValueError:
            if not self.layers(model):
                raise
            return 0


@refused_twin(says="raised nothing", source="huggingface/lerobot #3459: wrapped again after loading, and drawn again")
class DrawsAdaptedLayersAgain(LivedModel):
    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> int:
        known = [self.layers(model).get(name) for name in peft_config.target_modules]
        if not all(known):
            return super().apply_lora_to_linear_modules(model, peft_config)
        for layer in known:
            layer.init_lora_weights("xavier")
        return len(known)


@refused_twin(says="after load-", source="a merged model unmerged before the file is read")
class UnmergesBeforeItRefuses(LivedModel):
    def load_adapter(self, model: nn.Module, path: Any) -> Any:
        if self.layers(model):
            reference.unmerge_adapters(model)
        return super().load_adapter(model, path)


@refused_twin(says="requires grad", source="flags set before the file is read")
class ThawsBeforeItRefuses(LivedModel):
    def load_adapter(self, model: nn.Module, path: Any) -> Any:
        for layer in self.layers(model).values():
            layer.lora_A.requires_grad_(True)
        return super().load_adapter(model, path)


@refused_twin(says="after save-wrong", source="the model converted for a file not written")
class SavesHalfOfTheModel(LivedModel):
    def save_adapter(self, model: nn.Module, config: Any, path: Any) -> None:
        whole = {layer.lora_A.weight: layer.lora_A.weight.data for layer in self.layers(model).values()}
        for parameter in whole:
            parameter.data = parameter.data.half()
        super().save_adapter(model, config, path)
        for parameter, values in whole.items():
            parameter.data = values


@refused_twin(says="after merge-tied", source="huggingface/peft #2018, layer by layer")
class MergesUpToTheTiedHead(LivedModel):
    def merge_adapters(self, model: nn.Module) -> int:
        for layer in self.layers(model).values():
            if layer.weight is not model.embed.weight:
                layer.merge()
        return super().merge_adapters(model)


@refused_twin(says="raised nothing", source="huggingface/peft #2018")
class MergesATiedHead(LivedModel):
    @torch.no_grad()
    def merge_adapters(self, model: nn.Module) -> int:
        layers = [layer for layer in self.layers(model).values() if not layer.merged]
        for layer in layers:
            layer.merge()
        return len(layers)
