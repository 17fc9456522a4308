"""torchtune's `LoRALinear`: `loraspec run conformance.targets.torchtune`."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from conformance.targets.wrapped_layer import WrappedLayer, check, library, version_of

WRITTEN_FOR = ("torchtune", "0.6.1", "pip install 'loraspec[torchtune]'")
with library(*WRITTEN_FOR), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchao warns about extensions compiled for other versions of torch
    from torchtune.modules.peft import LoRALinear

CONFORMANCE = {
    "name": "torchtune LoRALinear",
    "version": version_of("torchtune"),
    "dropout_positions": ("pre",),
    "features": {
        **dict.fromkeys(("rslora", "adapter_dtype", "initialisation", "memory_efficient"), "absent"),
        "state_names": "other",
    },
}


class LinearLoRA(WrappedLayer):
    """torchtune's layer with a base layer's parameters.

    Source: torchtune 0.6.1, `torchtune/modules/peft/lora.py`.
    """

    library = "torchtune"

    def wrap(self, orig_linear: nn.Linear, dim: int, alpha: Any, dropout: float, **_: bool) -> Any:
        """torchtune's layer with the weight and bias of orig_linear."""
        sizes = (orig_linear.in_features, orig_linear.out_features)
        layer = LoRALinear(*sizes, dim, alpha, dropout=dropout, use_bias=orig_linear.bias is not None)
        layer.weight, layer.bias = orig_linear.weight, orig_linear.bias
        return layer

    @property
    def lora_A(self) -> Any:
        """The adapter's first linear layer."""
        return self.wrapped.lora_a

    @property
    def lora_B(self) -> Any:
        """The adapter's second linear layer."""
        return self.wrapped.lora_b

    @property
    def scale(self) -> float:
        """The adapter's scaling."""
        return float(self.wrapped.alpha / self.wrapped.rank)


with library(*WRITTEN_FOR):
    check(LinearLoRA)
