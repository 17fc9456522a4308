"""Axolotl's fused LoRA projection: `loraspec run conformance.targets.axolotl --device cuda`.

The target follows the source of axolotl 0.19.0 (`axolotl/kernels/lora.py`). It needs a GPU and has never been run.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from conformance.targets.fused_peft import FusedLayer, declaration
from conformance.targets.wrapped_layer import check, library, version_of

WRITTEN_FOR = ("axolotl", "0.19.0", "pip install axolotl==0.19.0, on a machine with a GPU")
with library(*WRITTEN_FOR):
    from axolotl.kernels.lora import apply_lora_linear

CONFORMANCE = declaration("Axolotl apply_lora_linear", version_of("axolotl"))


class LinearLoRA(FusedLayer):
    """PEFT's layer with Axolotl's forward and backward pass, including dropout and DoRA."""

    library = "Axolotl"

    def project(self, x: Tensor) -> Any:
        """Axolotl's projection, which takes all operands from PEFT's layer."""
        return apply_lora_linear(self.wrapped, x)


with library(*WRITTEN_FOR):
    check(LinearLoRA)
