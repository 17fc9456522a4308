"""Unsloth's fused LoRA projection: `loraspec run conformance.targets.unsloth --device cuda`.

The target follows the source of unsloth 2026.10.9 (`unsloth/kernels/fast_lora.py`). It needs a GPU and has never been
run.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor

from conformance.targets.fused_peft import FusedLayer, declaration
from conformance.targets.wrapped_layer import check, library, version_of

WRITTEN_FOR = ("unsloth", "2026.10.9", "pip install unsloth==2026.10.9, on a machine with a GPU")
with library(*WRITTEN_FOR):
    import unsloth  # noqa: F401  (first: it patches transformers and PEFT)
    from unsloth.kernels.fast_lora import apply_lora_o

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
