"""Known-bad twins of layers with an unknown packed weight: codes read as numbers, half a model, no word about it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import reference
from reference.stored_weight import is_packed
from tests.baselines.model import RightModel
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import MODEL, reclassed, update


def with_an_adapter(layer: Any, options: dict[str, Any]) -> Any:
    """A layer with a packed weight and an adapter, as a library makes it that does not look at the weight."""
    rank = options.get("dim", 8)
    layer.weight.requires_grad_(False)
    layer.lora_A = nn.Linear(layer.in_features, rank, bias=False)
    layer.lora_B = nn.Linear(rank, layer.out_features, bias=False)
    nn.init.zeros_(layer.lora_B.weight)
    layer.scale = options.get("alpha", 32) / rank
    return layer


class LooksAtNoWeight(RightModel):
    """A model whose packed layers get adapters; `compute` is their output."""

    def check(self, module: nn.Module, config: Any) -> None:
        if not self.takes(module):
            super().check(module, config)

    def takes(self, module: Any) -> bool:
        """Whether a packed layer gets an adapter."""
        return is_packed(module.weight, (module.out_features, module.in_features))

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(orig_linear, nn.Linear) or not self.takes(orig_linear):
            return super().patch_linear_module(orig_linear, *arguments, **options)
        compute = self.compute
        layer = with_an_adapter(orig_linear, options)

        def forward(layer: Any, x: Tensor) -> Tensor:
            return compute(layer, x)

        reclassed(layer, forward=forward)
        return layer

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return linear(x, layer.weight, layer.bias) + update(layer, x)


@breaks("MOD-PACKED", says="returned int: expected ValueError", source="the dtype of the adapter alone", **MODEL)
class AdaptsPackedLayers(LooksAtNoWeight):
    pass


@breaks("MOD-PACKED", says="returned int", source="a list of integer dtypes", **MODEL)
class TakesFloat8ForFloats(LooksAtNoWeight):
    def takes(self, module: Any) -> bool:
        return super().takes(module) and module.weight.is_floating_point() and module.weight.dtype.itemsize == 1


@breaks("MOD-PACKED", says="returned int", source="the dtype alone is checked", **MODEL)
class TakesAnyShape(LooksAtNoWeight):
    def takes(self, module: Any) -> bool:
        return super().takes(module) and module.weight.dtype == torch.float32


@breaks("MOD-PACKED", says="was refused and changed", source="each layer checked when its turn comes", **MODEL)
class AdaptsUpToThePackedLayer(RightModel):
    def check_named(self, model: nn.Module, module: nn.Module, config: Any) -> None:
        pass

    def patch(self, module: nn.Module, config: Any) -> None:
        super().check_named(nn.ModuleDict({"head": module}), module, config)
        super().patch(module, config)


@breaks("MOD-PACKED", says="does not name head", **MODEL)
class DoesNotSayWhichLayer(RightModel):
    def check_named(self, model: nn.Module, module: nn.Module, config: Any) -> None:
        self.check(module, config)


@breaks("MOD-PACKED", says="does not name the shape", **MODEL)
class DoesNotSayTheShape(RightModel):
    def check(self, module: Any, config: Any) -> None:
        try:
            super().check(module, config)
        except ValueError as error:
            raise ValueError(f"{type(module).__name__} has a weight in {module.weight.dtype}") from error


@breaks("MOD-PACKED-NUMBERS", says="computes an output from its codes", source="NeMo Automodel #2584", **MODEL)
class MultipliesWithCodes(LooksAtNoWeight):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        codes = layer.weight.to(x.dtype).reshape(-1)
        whole = codes.repeat(-(-layer.out_features * layer.in_features // codes.numel()))
        weight = whole[: layer.out_features * layer.in_features].view(layer.out_features, layer.in_features)
        return linear(x, weight, layer.bias) + update(layer, x)


@breaks("MOD-PACKED-NUMBERS", says="computes an output from its codes", source="the adapter alone", **MODEL)
class LeavesThePackedBaseOut(LooksAtNoWeight):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return update(layer, x)


@breaks("MOD-PACKED-WARNED", says="no warning names blocks.1.fc2", source="isinstance of nn.Linear", **MODEL)
class SaysNothingOfPackedModules(RightModel):
    def warn_of_packed(self, model: nn.Module, config: Any) -> None:
        pass


@breaks("MOD-PACKED-WARNED", says="no warning names blocks.1.fc2", **MODEL)
class NamesOnlyTheClass(RightModel):
    def warn_of_packed(self, model: nn.Module, config: Any) -> None:
        warnings.warn("the model has layers of a class that gets no adapter", stacklevel=4)


@breaks("MOD-PACKED-WARNED", says="has been changed", source="any module with in_features", **MODEL)
class AdaptsPackedModules(RightModel):
    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        count = super().apply_lora_to_linear_modules(model, peft_config)
        for module in list(model.modules()):
            if hasattr(module, "W_q"):
                module.add_module("lora_A", nn.Linear(1, 1))
        return count


def wraps(layer: Any) -> Any:
    """A CustomLinear that takes any weight, as the source's does."""
    custom = reference.CustomLinear(torch.zeros(layer.out_features, layer.in_features), layer.bias)
    custom._parameters["weight"] = layer.weight
    return custom


class WrapsPackedLayers(reference.LoraTraining):
    @staticmethod
    def replace_layers_with_custom(model: Any, skip_first: bool = True) -> None:
        model.head = wraps(model.head)


class WrapsUpToThePackedLayer(reference.LoraTraining):
    @staticmethod
    def replace_layers_with_custom(model: Any, skip_first: bool = True) -> None:
        head = model.head
        model.blocks[0].fc2 = wraps(model.blocks[0].fc2)
        model.head = head
        reference.LoraTraining.replace_layers_with_custom(model, skip_first)


class LeavesPackedLayersAlone(reference.LoraTraining):
    @staticmethod
    def replace_layers_with_custom(model: Any, skip_first: bool = True) -> None:
        pass


@breaks("MOD-PACKED-CUSTOM", says="returned NoneType", source="Concrete ML `replace_layers_with_custom`", **MODEL)
class MakesCustomLinearsOfPackedLayers(RightModel):
    LoraTraining = WrapsPackedLayers


@breaks("MOD-PACKED-CUSTOM", says="was refused and changed the class of blocks.0.fc2", **MODEL)
class ReplacesLayersUntilOneIsPacked(RightModel):
    LoraTraining = WrapsUpToThePackedLayer


@breaks("MOD-PACKED-CUSTOM", says="returned NoneType", **MODEL)
class KeepsPackedLayersOutOfTheSplitSilently(RightModel):
    LoraTraining = LeavesPackedLayersAlone


class SplitsPackedLayers(reference.HybridFHEModel):
    def __init__(self, model: nn.Module, module_names: Any, *arguments: Any, **options: Any) -> None:
        pass


@breaks("MOD-PACKED-SPLIT", says="returned SplitsPackedLayers", source="a class check alone", **MODEL)
class SendsPackedLayersToTheServer(RightModel):
    HybridFHEModel = SplitsPackedLayers


class FindsPackedLayersLate(reference.HybridFHEModel):
    def __init__(self, model: Any, module_names: Any, *arguments: Any, **options: Any) -> None:
        head = model.head
        model.head = nn.Identity()
        super().__init__(nn.ModuleDict({"head": head}), module_names, *arguments, **options)


@breaks("MOD-PACKED-SPLIT", says="the refused head has become a Identity", **MODEL)
class TakesTheHeadOutBeforeItRefuses(RightModel):
    HybridFHEModel = FindsPackedLayersLate
