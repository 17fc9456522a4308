"""Axolotl's fused LoRA projection: `loraspec run conformance.targets.axolotl`.

The target follows the source of axolotl 0.19.0 (`axolotl/kernels/lora.py`). It imports this file alone, which is plain
PyTorch for a weight in floating point, so that it runs on a CPU too.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from conformance.targets.fused_peft import FusedLayer, declaration
from conformance.targets.package_part import imported, without_init
from conformance.targets.wrapped_layer import check, library, version_of

WRITTEN_FOR = ("axolotl", "0.19.0", "ci/peers builds an environment with it")
STUBS = {"axolotl.utils.logging": {"get_logger": logging.getLogger}}
with library(*WRITTEN_FOR), without_init("axolotl", STUBS, stay=True):
    LORA = imported("axolotl.kernels.lora")
    ALLOCATING = (imported("axolotl.kernels.swiglu"), imported("axolotl.kernels.geglu"))
    apply_lora_linear = LORA.apply_lora_linear

# its DoRA drops the x of the adapter alone, where PEFT's drops that of the norm's correction too
CONFORMANCE = declaration("Axolotl apply_lora_linear", version_of("axolotl"), dora_dropout="adapter")


class LinearLoRA(FusedLayer):
    """PEFT's layer with Axolotl's forward and backward pass, including dropout and DoRA."""

    library = "Axolotl"

    def project(self, x: Tensor) -> Any:
        """Axolotl's projection, which takes all operands from PEFT's layer."""
        return apply_lora_linear(self.wrapped, x)


with library(*WRITTEN_FOR):
    check(LinearLoRA)
