"""PEFT on bitsandbytes in 4 bits: `loraspec run conformance.targets.peft_bitsandbytes --group quantised`.

`conformance.targets.peft_bitsandbytes:eight_bit` is PEFT on its layer in 8 bits.
"""

from __future__ import annotations

from torch import nn

from conformance.targets import packed_peft
from conformance.targets.bitsandbytes_base import dequantize_weight, is_eight_bit, packed_fields, packed_linear
from conformance.targets.wrapped_layer import version_of

__all__ = ["dequantize_weight", "eight_bit", "packed_fields", "packed_linear", "patch_linear_module"]

VERSION = f"{version_of('peft')}+bitsandbytes.{version_of('bitsandbytes')}"
CONFORMANCE = {
    **packed_peft.declared("nf4", "fp4", compute_dtype=True, autocast="input dtype"),
    "name": "peft on bitsandbytes, 4-bit",
    "version": VERSION,
}


def _loaded(base: nn.Module) -> dict[str, bool]:
    """As in a model that transformers has loaded in 4 or 8 bits."""
    return {"is_loaded_in_8bit" if is_eight_bit(base) else "is_loaded_in_4bit": True}


patch_linear_module = packed_peft.patching(_loaded)


class eight_bit:  # noqa: N801  (a target, named as a module would be)
    """PEFT on Linear8bitLt, which computes in the dtype of x in training mode, and in int8 in eval mode."""

    CONFORMANCE = {  # noqa: RUF012
        **packed_peft.declared("int8_bitsandbytes", packed_inputs="int8 rows"),
        "name": "peft on bitsandbytes, 8-bit",
        "version": VERSION,
    }
    packed_linear = staticmethod(packed_linear)
    patch_linear_module = staticmethod(patch_linear_module)
    packed_fields = staticmethod(packed_fields)
    dequantize_weight = staticmethod(dequantize_weight)
