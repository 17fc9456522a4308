"""Unsloth's fused LoRA projection: `loraspec run conformance.targets.unsloth`.

The target follows the source of unsloth 2026.10.9 (`unsloth/kernels/fast_lora.py`). On a GPU it imports the package. On
a CPU the package does not import, but its projection is plain PyTorch: the target imports its file alone.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from conformance.targets.fused_peft import FusedLayer, declaration
from conformance.targets.package_part import imported, without_init
from conformance.targets.wrapped_layer import check, library, version_of

WRITTEN_FOR = ("unsloth", "2026.10.9", "ci/peers builds an environment with it")
# what the file imports and the projection of a weight in floating point does not use
DEVICE = {
    "is_hip": lambda: False,
    "get_device_type": lambda: "cuda",
    "DEVICE_TYPE": "cuda",
    "DEVICE_TYPE_TORCH": "cuda",
    "DEVICE_COUNT": 0,
    "ALLOW_PREQUANTIZED_MODELS": False,
}
ZOO: dict[str, dict[str, Any]] = {
    "unsloth_zoo.utils": {"Version": Version},
    "unsloth_zoo.log": {"logger": logging.getLogger("unsloth")},
    "unsloth_zoo.temporary_patches.common": {"torch_compile": lambda *_, **__: lambda function: function},
}


def _fast_lora() -> Any:
    """The module of the fused projections, from the package on a GPU, else its file alone."""
    if torch.cuda.is_available():
        imported("unsloth")  # first: it patches transformers and PEFT
        return imported("unsloth.kernels.fast_lora")
    with without_init("unsloth", {"unsloth.device_type": DEVICE} | ZOO, stay=True):
        return imported("unsloth.kernels.fast_lora")


with library(*WRITTEN_FOR):
    FAST_LORA = _fast_lora()
    apply_lora_o = FAST_LORA.apply_lora_o

CONFORMANCE = declaration("Unsloth apply_lora_o", version_of("unsloth"))


class LinearLoRA(FusedLayer):
    """PEFT's layer with Unsloth's forward and backward pass.

    `apply_lora_o` does not support a bias of the base layer; Unsloth leaves such a layer to PEFT (`models/llama.py`).
    """

    library = "Unsloth"

    def project(self, x: Tensor) -> Any:
        """Unsloth's projection, called as an attention block calls it for its o_proj."""
        return self.wrapped(x) if self.bias is not None else apply_lora_o(SimpleNamespace(o_proj=self.wrapped), x)


with library(*WRITTEN_FOR):
    check(LinearLoRA)
