"""Known-bad twins of merged models: merging changes another module, or loses the update."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import reference
from tests.baselines.model import RightModel
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import AfterPatching, reclassed

DOUBLE = {"groups": ("model",), "dtypes": ("float64",)}


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, reference.LinearLoRA)]


def _merged(model: nn.Module) -> int:
    waiting = [layer for layer in _layers(model) if not layer.merged]
    for layer in waiting:
        layer.merge()
    return len(waiting)


@breaks("MOD-MERGE", says="merge_adapters left the weight of", **DOUBLE)
class MergesTopLayersOnly(RightModel):
    @staticmethod
    def merge_adapters(model: nn.Module) -> int:  # type: ignore[override]
        layers = [layer for layer in model.children() if isinstance(layer, reference.LinearLoRA) and not layer.merged]
        for layer in layers:
            layer.merge()
        return len([layer for layer in _layers(model) if not layer.merged]) + len(layers) if layers else 0


@breaks("MOD-MERGE", says="merge_adapters returned", source="modules counted under each of their names", **DOUBLE)
class CountsMergedNames(RightModel):
    @staticmethod
    def merge_adapters(model: nn.Module) -> int:  # type: ignore[override]
        names = [m for _, m in model.named_modules(remove_duplicate=False) if isinstance(m, reference.LinearLoRA)]
        return len(names) if _merged(model) else 0


@breaks("MOD-MERGE", says="after unmerge_adapters", source="only the flag is reset", **DOUBLE)
class ForgetsTheUnmergedWeight(RightModel):
    @staticmethod
    def unmerge_adapters(model: nn.Module) -> int:  # type: ignore[override]
        merged = [layer for layer in _layers(model) if layer.merged]
        for layer in merged:
            layer.unmerged_weight = None
        return len(merged)


@breaks("MOD-MERGE-TIED", says="returned int", source="huggingface/peft #2018: merging with tied embeddings", **DOUBLE)
class MergesATiedHead(RightModel):
    @staticmethod
    def merge_adapters(model: nn.Module) -> int:  # type: ignore[override]
        return _merged(model)


@breaks("MOD-MERGE-TIED", says="returned int", source="parameters compared by identity", **DOUBLE)
class LooksOnlyAtParameters(RightModel):
    @staticmethod
    def merge_adapters(model: nn.Module) -> int:  # type: ignore[override]
        held = [p for module in model.modules() for p in module.parameters(recurse=False)]
        for layer in _layers(model):
            if sum(p is layer.weight for p in held) > 1:
                return reference.merge_adapters(model)
        return _merged(model)


@breaks("MOD-MERGE-TIED", says="was refused and changed", source="each layer checked when its turn comes", **DOUBLE)
class MergesUntilATiedLayer(RightModel):
    @staticmethod
    def merge_adapters(model: nn.Module) -> int:  # type: ignore[override]
        try:
            return reference.merge_adapters(model)
        except ValueError:
            _layers(model)[0].merge()
            raise


@breaks("MOD-MERGE-TIED", says="the message does not name", **DOUBLE)
class NamesNoModule(RightModel):
    @staticmethod
    def merge_adapters(model: nn.Module) -> int:  # type: ignore[override]
        try:
            return reference.merge_adapters(model)
        except ValueError:
            raise ValueError("a weight is tied") from None


@torch.no_grad()
def _merge_anyway(layer: Any) -> None:
    if not layer.merged:
        layer.unmerged_weight = layer.weight.detach().clone()
        layer.weight.copy_(layer.weight + layer.scale * layer.lora_B.weight @ layer.lora_A.weight)


@breaks(
    "MOD-MERGE-OWN", says="own forward returned", source="an update added to W, whatever the forward does", **DOUBLE
)
class MergesAnyForward(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        if "weight" in layer._parameters:
            reclassed(layer, merge=_merge_anyway)


@breaks("MOD-MERGE-OWN", says="_norm returned", source="an update added to a weight that is computed again", **DOUBLE)
class MergesAComputedWeight(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        if "weight" not in layer._parameters:
            reclassed(layer, merge=_merge_anyway)


@breaks("MOD-MERGE-OWN", says="was refused", source="a layer marked as merged before it is checked", **DOUBLE)
class MarksALayerBeforeItRefuses(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        def merge(own: Any) -> None:
            own.unmerged_weight = own.weight.detach().clone()
            type(own).__mro__[1].merge(own)  # returns at once: it is merged already
            raise ValueError("this layer cannot be merged")

        if type(layer).forward is not reference.LinearLoRA.forward or "weight" not in layer._parameters:
            reclassed(layer, merge=merge)
