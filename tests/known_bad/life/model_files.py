"""Known-bad twins of the lives of models that are saved and loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import reference
from tests.baselines.lived_model import LivedModel
from tests.known_bad.life.registration import model_twin


@model_twin("LIFE-MODEL-FWD", says="after load", source="an adapter saved as W + ΔW lost it: saved scaled once merged")
class SavesTheMergedAdapterScaled(LivedModel):
    @torch.no_grad()
    def save_adapter(self, model: nn.Module, config: Any, path: Any) -> None:
        merged = [layer for layer in self.layers(model).values() if layer.merged]
        for layer in merged:
            layer.lora_B.weight.mul_(layer.scale * 3)
        super().save_adapter(model, config, path)
        for layer in merged:
            layer.lora_B.weight.div_(layer.scale * 3)


@model_twin("LIFE-MODEL-STATE", says="after save", source="saving unmerges, and leaves the model unmerged")
class UnmergesToSave(LivedModel):
    def save_adapter(self, model: nn.Module, config: Any, path: Any) -> None:
        reference.unmerge_adapters(model)
        super().save_adapter(model, config, path)


@model_twin("LIFE-MODEL-FWD", says="after load", source="load into a merged model forgets the merge: ΔW is there twice")
class LoadsBesideAMerge(LivedModel):
    def load_adapter(self, model: nn.Module, path: Any) -> Any:
        for layer in self.layers(model).values():
            layer.unmerged_weight = None
        return super().load_adapter(model, path)


@model_twin("LIFE-MODEL-FWD", says="after load", source="the merged weight stays in use when other adapters are loaded")
class StaysMergedWithTheOldAdapter(LivedModel):
    def load_adapter(self, model: nn.Module, path: Any) -> Any:
        merged = {layer: layer.weight.detach().clone() for layer in self.layers(model).values() if layer.merged}
        found = super().load_adapter(model, path)
        with torch.no_grad():
            for layer, weight in merged.items():
                layer.unmerged_weight = layer.weight.detach().clone()
                layer.weight.copy_(weight)
        return found


@model_twin("LIFE-MODEL-FWD", says="dtype", source="load converts the model to the dtype of the file")
class LoadsInTheDtypeOfTheFile(LivedModel):
    def save_adapter(self, model: nn.Module, config: Any, path: Any) -> None:
        self.dtype = next(iter(self.layers(model).values())).weight.dtype
        super().save_adapter(model, config, path)

    def loaded(self, model: nn.Module, *, plain: bool) -> None:
        if not plain:
            model.to(self.dtype)


@model_twin("LIFE-MODEL-STATE", says="after load", source="adapters saved in the dtype of the base")
class SavesInTheDtypeOfTheBase(LivedModel):
    @torch.no_grad()
    def save_adapter(self, model: nn.Module, config: Any, path: Any) -> None:
        whole = {}
        for layer in self.layers(model).values():
            for part in (layer.lora_A, layer.lora_B):
                whole[part] = part.weight.data
                part.weight.data = part.weight.data.to(layer.weight.dtype).to(part.weight.dtype)
        super().save_adapter(model, config, path)
        for part, values in whole.items():
            part.weight.data = values


@model_twin("LIFE-MODEL-STATE", says="requires grad", source="unslothai/unsloth-zoo #939, Blaizzy/mlx-vlm #2178")
class LeavesThePlainBaseTrainable(LivedModel):
    def load_adapter(self, model: nn.Module, path: Any) -> Any:
        plain, flags = not self.layers(model), [(p, p.requires_grad) for p in model.parameters()]
        found = super().load_adapter(model, path)
        for parameter, flag in flags if plain else ():
            parameter.requires_grad_(flag)
        return found


@model_twin("LIFE-MODEL-STATE", says="does not require grad", source="loading leaves adapters that were frozen frozen")
class LoadsFrozenAdapters(LivedModel):
    def load_adapter(self, model: nn.Module, path: Any) -> Any:
        frozen = [layer.lora_A for layer in self.layers(model).values() if not layer.lora_A.weight.requires_grad]
        found = super().load_adapter(model, path)
        for part in frozen:
            part.requires_grad_(False)
        return found


@model_twin("LIFE-MODEL-FWD", says="load-plain", source="huggingface/diffusers #14409: one scale for all")
class LoadsPlainWithTheDefaultScale(LivedModel):
    def loaded(self, model: nn.Module, *, plain: bool) -> None:
        for layer in self.layers(model).values() if plain else ():
            layer.scale = 4.0


@model_twin("LIFE-MODEL-FWD", says="after", source="a plain model that loads has no dropout")
class LoadsPlainWithoutDropout(LivedModel):
    def loaded(self, model: nn.Module, *, plain: bool) -> None:
        for layer in self.layers(model).values() if plain else ():
            layer.dropout_p = 0.0


@model_twin("LIFE-MODEL-STATE", says="training is", source="huggingface/peft #591: loading calls eval()")
class LoadsInEvaluationMode(LivedModel):
    def loaded(self, model: nn.Module, *, plain: bool) -> None:
        if not plain:
            model.eval()


@model_twin("LIFE-MODEL-STATE", says="training is", source="huggingface/transformers #34469: loading leaves eval()")
class LoadsInTrainingMode(LivedModel):
    def loaded(self, model: nn.Module, *, plain: bool) -> None:
        model.train()


@model_twin("LIFE-MODEL-STATE", says="dtype", source="huggingface/peft #1090: a second file is cast")
class LoadsPlainInTheDtypeOfTheBase(LivedModel):
    def loaded(self, model: nn.Module, *, plain: bool) -> None:
        for layer in self.layers(model).values() if plain else ():
            layer.lora_A.to(layer.weight.dtype)
            layer.lora_B.to(layer.weight.dtype)


@model_twin("LIFE-MODEL-STATE", says="another Parameter", source="pytorch/torchtune: loading assigns new Parameters")
class LoadsNewParameters(LivedModel):
    def loaded(self, model: nn.Module, *, plain: bool) -> None:
        for layer in self.layers(model).values():
            layer.lora_B.weight = nn.Parameter(layer.lora_B.weight.detach().clone())


@model_twin("LIFE-MODEL-FWD", says="after load", source="tensors matched to layers by shape, sorted by name")
class LoadsLayersInAlphabeticalOrder(LivedModel):
    @torch.no_grad()
    def loaded(self, model: nn.Module, *, plain: bool) -> None:
        layers = self.layers(model)
        if {"up", "down"} <= set(layers) and layers["up"].weight.shape == layers["down"].weight.shape:
            for part in ("lora_A", "lora_B"):
                one, other = (getattr(layers[name], part).weight for name in ("up", "down"))
                kept = one.clone()
                one.copy_(other)
                other.copy_(kept)


@model_twin("LIFE-MODEL-BWD", says="raised RuntimeError", source="adapters made in inference mode by loading")
class LoadsInInferenceMode(LivedModel):
    def load_adapter(self, model: nn.Module, path: Any) -> Any:
        if self.layers(model):
            return super().load_adapter(model, path)
        with torch.inference_mode():
            return super().load_adapter(model, path)


@model_twin("LIFE-MODEL-STATE", says="another Parameter", source="loading without tie_weights() afterwards")
class UntiesTheHeadWhenItLoads(LivedModel):
    def loaded(self, model: Any, *, plain: bool) -> None:
        if not plain and model.head.weight is model.embed.weight and isinstance(model.head, reference.LinearLoRA):
            model.head.weight = nn.Parameter(model.head.weight.detach().clone(), requires_grad=False)
