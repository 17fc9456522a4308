"""Known-bad twins of a model's kept tensors: a call casts a bias, or eval mode freezes the adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import MODEL, AfterPatching, reclassed


@breaks("MOD-KEEP-CALLS", says="bias torch.bfloat16", source="bitsandbytes Linear4bit.forward: bias.data", **MODEL)
class CastsBiasesForGood(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        right = type(layer).forward

        def forward(layer: Any, x: Tensor) -> Any:
            y = right(layer, x)
            if torch.is_autocast_enabled(x.device.type):
                layer.bias.data = layer.bias.data.to(y.dtype)
            return y

        reclassed(layer, forward=forward)


@breaks("MOD-KEEP-CALLS", says="set requires_grad of ", source="inference that freezes, and no train() after", **MODEL)
class FreezesAdaptersWithoutAGraph(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        right = type(layer).forward

        def forward(layer: Any, x: Tensor) -> Any:
            layer.lora_A.weight.requires_grad_(torch.is_grad_enabled())
            return right(layer, x)

        reclassed(layer, forward=forward)
