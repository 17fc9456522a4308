"""Axolotl's fused LoRA projection: `loraspec run conformance.targets.axolotl --device cuda`.

Written from the source of axolotl 0.19.0 (`axolotl/kernels/lora.py`) and not run so far: it needs a GPU.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from conformance.targets.fused_peft import FusedLayer, declaration
from conformance.targets.wrapping import check, library, version_of

WRITTEN_FOR = ("axolotl", "0.19.0", "pip install axolotl==0.19.0, on a machine with a GPU")
with library(*WRITTEN_FOR):
    from axolotl.kernels.lora import apply_lora_linear

CONFORMANCE = declaration("Axolotl apply_lora_linear", version_of("axolotl"))


class LinearLoRA(FusedLayer):
    """PEFT's layer with Axolotl's forward and backward, dropout and DoRA included."""

    library = "Axolotl"

    def project(self, x: Tensor) -> Any:
        """Axolotl's, which takes everything from PEFT's layer."""
        return apply_lora_linear(self.wrapped, x)


with library(*WRITTEN_FOR):
    check(LinearLoRA)
