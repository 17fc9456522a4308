"""The choice of a product for quantised integers: by a kernel, in int8, float32 or float64."""

from typing import Any

import torch
from torch import Tensor

import reference
from optimized.dispatch.triton_kernels import why_not_triton_on
from reference.encrypted.modular import has_vnni

MOST_INTERPRETED = 2**14
"""The largest number of multiplications that a CPU runs in the interpreted kernel. So a conformance run judges the
kernel by small cases, and the products of the CPU by the other cases."""


def why_not_kernel(layer: reference.QuantizedLinear, x: Tensor) -> str | None:
    """The reason why the int8 Triton kernel cannot compute the layer exactly, or None if it can.

    Args:
        layer: the layer.   x: [M, K], its input; only its device and size matter.
    """
    if reason := _why_not_int32(layer) or why_not_triton_on(x.device):
        return reason
    if x.device.type == "cpu" and x.numel() * layer.out_features > MOST_INTERPRETED:
        return f"the interpreter is slow for more than {MOST_INTERPRETED} multiplications"
    return None


def why_not_int8(layer: reference.QuantizedLinear, x: Tensor) -> str | None:
    """The reason why PyTorch's int8 product with int32 sums is not exact or not fast, or None.

    Args:
        layer: the layer.   x: [M, K], its quantised input.
    """
    if reason := _why_not_int32(layer):
        return reason
    if x.device.type == "cuda":
        return None
    if layer.in_features == 1:
        return "torch's int8 product on the CPU reads a transposed weight of one feature wrongly"
    # Without VNNI the CPU adds pairs of products in saturating int16.
    if x.device.type != "cpu" or not has_vnni():
        return f"this {x.device.type} has no int8 dot product with int32 sums"
    return None


def why_not_float32(layer: reference.QuantizedLinear) -> str | None:
    """The reason why float32 products are not exact, or None if every partial sum is an integer below 2²⁴.

    Args:
        layer: the layer, with its weight.
    """
    kept: Any = layer  # the layer of `optimized` computes it once
    largest: int = kept.largest_product if hasattr(layer, "largest_product") else layer.largest_accumulator
    if largest >= 2**24:
        return f"sums of up to {largest} do not fit the 24 bits of float32"
    if torch.get_float32_matmul_precision() != "highest":
        return f"float32 products are set to {torch.get_float32_matmul_precision()!r} precision"
    return None


def _why_not_int32(layer: reference.QuantizedLinear) -> str | None:
    """The reason why sums of int8 products could overflow int32; 2¹⁷ - 1 products of at most 2¹⁴ cannot."""
    if layer.n_bits > 8:
        return f"{layer.n_bits} bits do not fit int8"
    if layer.in_features >= 2**17:
        return f"sums over {layer.in_features} features may leave int32"
    return None
