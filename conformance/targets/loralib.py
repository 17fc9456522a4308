"""loralib's `Linear`: `loraspec run conformance.targets.loralib`."""

from __future__ import annotations

from typing import Any

from torch import nn

from conformance.targets.wrapped_layer import WrappedLayer, check, library, version_of

WRITTEN_FOR = ("loralib", "0.1.2", "pip install 'loraspec[peers]'")
with library(*WRITTEN_FOR):
    from loralib import Linear

CONFORMANCE = {
    "name": "loralib Linear",
    "version": version_of("loralib"),
    "dropout_positions": ("pre",),
    "features": {
        **dict.fromkeys(("rslora", "adapter_dtype", "initialisation", "memory_efficient"), "absent"),
        "state_names": "other",
    },
}


class LinearLoRA(WrappedLayer):
    """loralib's layer with a base layer's parameters.

    `merge_weights=False`, because loralib otherwise merges in eval() and unmerges in train().
    Source: loralib 0.1.2, `loralib/layers.py`.
    """

    library = "loralib"

    def wrap(self, orig_linear: nn.Linear, dim: int, alpha: Any, dropout: float, **_: bool) -> Any:
        """loralib's layer with the weight and bias of orig_linear."""
        options = {"bias": orig_linear.bias is not None, "dtype": orig_linear.weight.dtype, "merge_weights": False}
        sizes = (orig_linear.in_features, orig_linear.out_features)
        layer = Linear(*sizes, r=dim, lora_alpha=alpha, lora_dropout=dropout, **options)
        layer.weight, layer.bias = orig_linear.weight, orig_linear.bias
        return layer


with library(*WRITTEN_FOR):
    check(LinearLoRA)
