"""The forward pass of an adapted layer whose base is packed."""

from typing import Any

from torch import Tensor

from optimized.dispatch.packed_node import why_not_packed_layer
from optimized.packed_product import fused_packed_linear
from reference.packed_layer import packed_base_of


def packed_output(layer: Any, x: Tensor) -> Tensor | None:
    """The output of a `LinearLoRA` on a packed base, or None if another way computes it.

    `why_not_packed_layer` has the reasons.
    """
    weight: Any = packed_base_of(layer)
    if why_not_packed_layer(layer, weight) is not None:
        return None
    A, B, c = layer.lora_A.weight, layer.lora_B.weight, getattr(layer, "compute_dtype", None)
    rate = layer.dropout_p if layer.training else 0.0
    how = rate, layer.dropout_position, bool(layer.use_memory_efficient_lora), layer.interprets_kernels
    return fused_packed_linear(x, weight, layer.bias, A, B, layer.scale, c, *how)
