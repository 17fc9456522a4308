"""Known-bad twins of training step: a training step moves the wrong parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import MODEL, Computes, update


@breaks("MOD-STEP", says="left blocks.0", **MODEL)
class DetachesLoraA(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        down = linear(x, layer.lora_A.weight.detach())
        return linear(x, layer.weight, layer.bias) + linear(down, layer.lora_B.weight) * layer.scale


@breaks("MOD-STEP", says="which is no adapter", **MODEL)
class MergesWhileItTrains(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        y = super().compute(layer, x)
        with torch.no_grad():
            layer.weight.data = layer.weight + 0.1 * layer.lora_B.weight @ layer.lora_A.weight
        return y


@breaks("MOD-STEP-LOSS", says="12 AdamW steps took the loss from", **MODEL)
class TurnsTheGradientRound(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        up = update(layer, x)
        return linear(x, layer.weight, layer.bias) + 2 * up.detach() - up
