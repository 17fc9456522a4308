"""The Triton kernels of a LoRA adapter, of an activation, of quantised products, and of packed weights.

This package imports triton, so it is imported only at the first launch.

The axes are M (tokens), N (out features), K (in features) and R (rank). Operands may have any strides. Each operand
is rounded to the compute dtype when it is loaded; intermediates between kernels are float32 (float64 for float64).
"""

from optimized.kernels.gated_activation import gated_activation, gated_activation_gradients
from optimized.kernels.grouped_lora_linear import grouped_lora_linear, tile_rows
from optimized.kernels.grouped_weight_grad import grouped_weight_grad
from optimized.kernels.int8_linear import int8_linear
from optimized.kernels.linear_expand import linear_expand
from optimized.kernels.lora_expand import lora_expand
from optimized.kernels.lora_shrink import lora_shrink
from optimized.kernels.packed_dequantize import packed_dequantize
from optimized.kernels.packed_linear import packed_linear
from optimized.kernels.packed_storage import storage_of
from optimized.kernels.shrink_and_grad import shrink_and_grad
from optimized.kernels.tiles import INTERPRETED
from optimized.kernels.weight_grad import weight_grad

__all__ = [
    "INTERPRETED",
    "gated_activation",
    "gated_activation_gradients",
    "grouped_lora_linear",
    "grouped_weight_grad",
    "int8_linear",
    "linear_expand",
    "lora_expand",
    "lora_shrink",
    "packed_dequantize",
    "packed_linear",
    "shrink_and_grad",
    "storage_of",
    "tile_rows",
    "weight_grad",
]
