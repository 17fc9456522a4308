"""Known-bad twins of dropout: a patched layer drops at the wrong rate, place or time."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

import reference
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import MODEL, AfterPatching, ChangesOptions, Computes


def _dropped(layer: Any, x: Tensor, active: bool) -> Tensor:
    return reference.lora_linear(
        x, layer.weight, layer.bias, layer.lora_A.weight, layer.lora_B.weight, layer.scale,
        dropout=layer.dropout_p, dropout_position=layer.dropout_position, training=active,
    )  # fmt: skip


@breaks("MOD-DROP-EVAL", says="worst    y[", source="NVIDIA-NeMo/Automodel fe1644ede (DR2)", **MODEL)
class AttachesADropoutInTraining(Computes):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.lora_dropout = nn.Dropout(layer.dropout_p)
        super().spoil(layer, options)

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return _dropped(layer, x, layer.lora_dropout.training)


@breaks("MOD-DROP-RATE", says="0.0% of the update is dropped", source="pytorch/torchtune #995 (DR1)", **MODEL)
class LosesTheDropout(ChangesOptions):
    def changed(self, options: Any) -> Any:
        return {**options, "dropout": 0.0}


@breaks("MOD-DROP-RATE", says="of the update is dropped with", **MODEL)
class KeepsWhatItShouldDrop(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.dropout_p = 1 - layer.dropout_p if layer.dropout_p else 0.0


@breaks("MOD-DROP-RATE", says="kept values are off", **MODEL)
class DoesNotRescale(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        base = linear(x, layer.weight, layer.bias)
        kept = 1 - layer.dropout_p if layer.training else 1.0
        return base + (_dropped(layer, x, layer.training) - base) * kept


@breaks("MOD-DROP-MODE", says="after train(", **MODEL)
class KeepsTheModeItWasPatchedIn(Computes):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.mode = layer.training
        super().spoil(layer, options)

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return _dropped(layer, x, layer.mode)


@breaks("MOD-DROP-POSITION", says="one by one", **MODEL)
class AlwaysDropsAfter(ChangesOptions):
    def changed(self, options: Any) -> Any:
        return {**options, "dropout_position": "post"} if options.get("dropout_position") == "pre" else options
