"""The choice between the autograd node for packed bases and the formula of the reference."""

from typing import Any

from torch import Tensor

import reference
from optimized.dispatch.fused_node import why_not_fused


def why_not_packed(weight: object, x: Tensor, *parameters: Tensor | None) -> str | None:
    """The reason why the reference must compute these operands, or None if the node for packed bases can.

    Args:
        weight: the frozen weight.   parameters: bias, lora_A, lora_B.
    """
    if not isinstance(weight, reference.PackedWeight):
        return f"a weight of {type(weight).__name__} has its own dequantize: its format is not known here"
    if reason := why_not_fused(x, *parameters):
        return reason
    for name, field in weight.fields.items():
        if field.device != x.device:
            return f"{name} of the weight is on {field.device} but x is on {x.device}"
    return None


def why_not_packed_layer(layer: Any, weight: object) -> str | None:
    """The reason why an adapted layer on a packed base takes another way than `lora_packed_linear`, or None.

    Args:
        layer: a `LinearLoRA`.   weight: the result of `packed_base_of`.
    """
    if layer.lora_magnitude is not None:
        return "DoRA needs the base product without the update, and the norms of Ŵ + scale · B A"
    if weight is None:
        return f"{layer.original_class.__name__} has its own forward, which computes the base product"
    return None
