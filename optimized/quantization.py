"""Numbers as integers and their products: the reference's."""

from reference.quantization import (
    Quantized,
    QuantizedLinear,
    quantize_dynamic,
    quantize_static,
    quantize_weight,
    quantize_weight_columns,
)

__all__ = [
    "Quantized",
    "QuantizedLinear",
    "quantize_dynamic",
    "quantize_static",
    "quantize_weight",
    "quantize_weight_columns",
]
