"""The forward pass of an adapted layer whose base is packed."""

from typing import Any

from torch import Tensor

from .dora import dora_output
from .packed_base import packed_source
from .packed_linear import PackedLinear
from .packed_product import Dequantizable, lora_packed_linear, output_dtype, packed_product


def packed_base_of(layer: Any) -> Dequantizable | None:
    """The packed weight whose product this package computes, or None.

    A class of another library with its own forward, such as bitsandbytes' Linear4bit, computes its own product.
    """
    own = isinstance(layer, PackedLinear) or not layer.base_is_elsewhere
    return packed_source(layer) if layer.has_packed_base and own else None


def packed_output(layer: Any, weight: Dequantizable, x: Tensor) -> Tensor:
    """The output of a `LinearLoRA` on a packed base, see `lora_packed_linear`; with DoRA ``W`` is Ŵ."""
    A, B, c = layer.lora_A.weight, layer.lora_B.weight, getattr(layer, "compute_dtype", None)
    dropout: Any = {"dropout": layer.dropout_p, "dropout_position": layer.dropout_position, "training": layer.training}
    m = layer.lora_magnitude
    if m is None:
        return lora_packed_linear(x, weight, layer.bias, A, B, layer.scale, compute_dtype=c, **dropout)

    def product(t: Tensor) -> Tensor:
        return packed_product(t.to(x.dtype), weight, None, c)

    y = dora_output(product, x, layer.base_weight, layer.bias, A, B, layer.scale, m, **dropout)
    return y.to(output_dtype(x, c))
