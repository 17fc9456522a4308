"""LitGPT's `LoRALinear` with its `merge`: `loraspec run conformance.targets.litgpt`.

LitGPT builds a model with these layers and never adapts one that exists, so the group `model` is not claimed. It merges
for good: there is no `unmerge`. The target imports the files of the layers and of the model alone, without Lightning.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from conformance.targets.package_part import imported, without_init
from conformance.targets.wrapped_layer import WrappedLayer, check, library, version_of

WRITTEN_FOR = ("litgpt", "0.5.13", "pip install --no-deps litgpt==0.5.13")
# what the files import and a layer never calls
STUBS: dict[str, dict[str, Any]] = {
    "litgpt.utils": {"map_old_state_dict_weights": None},
    "litgpt.scripts.convert_hf_checkpoint": {"qkv_reassemble": None},
}
with library(*WRITTEN_FOR), without_init("litgpt", STUBS, stay=True):
    LoRALinear = imported("litgpt.lora").LoRALinear

CONFORMANCE = {
    "name": "LitGPT LoRALinear",
    "version": version_of("litgpt"),
    "dropout_positions": ("pre",),
    "features": {
        **dict.fromkeys(("rslora", "adapter_dtype", "initialisation", "memory_efficient"), "absent"),
        "state_names": "other",
        "merged_state": "merged",
    },
}


class LinearLoRA(WrappedLayer):
    """LitGPT's layer with a base layer's parameters.

    Source: litgpt 0.5.13, `litgpt/lora.py`.
    """

    library = "LitGPT"

    def wrap(self, orig_linear: nn.Linear, dim: int, alpha: Any, dropout: float, **_: bool) -> Any:
        """LitGPT's layer with the weight and bias of orig_linear."""
        options = {"bias": orig_linear.bias is not None, "dtype": orig_linear.weight.dtype}
        sizes = (orig_linear.in_features, orig_linear.out_features)
        layer = LoRALinear(*sizes, r=dim, lora_alpha=alpha, lora_dropout=dropout, **options)
        layer.linear.weight, layer.linear.bias = orig_linear.weight, orig_linear.bias
        return layer

    @property
    def weight(self) -> Tensor:
        """The base layer's weight."""
        return self.wrapped.linear.weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.wrapped.linear.bias  # type: ignore[no-any-return]

    @property
    def merged(self) -> bool:
        """Whether the update is merged into the weight."""
        return bool(self.wrapped.merged)

    def merge(self) -> None:
        """LitGPT's merge, which `merge_lora_weights` calls for each layer of a model."""
        self.wrapped.merge()


with library(*WRITTEN_FOR):
    check(LinearLoRA)
