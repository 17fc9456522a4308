"""A frozen weight in few bits whose numbers are computed by tables, in tiles or by a kernel."""

from typing import Any

import torch
from torch import Tensor

import reference
from optimized.dispatch.packed_weight import why_not_dequantize_kernel, why_not_tiled
from optimized.packed.tiled_product import dequantized
from reference import packed_weight


class PackedWeight(reference.PackedWeight):
    """`reference.PackedWeight`, whose numbers are the same bit for bit, computed faster."""

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """As in the reference."""
        return numbers_of(self, dtype)


def pack_weight(weight: Tensor, format: str, **options: Any) -> PackedWeight:  # noqa: A002 the word of the interface
    """`reference.pack_weight`."""
    return as_fast(packed_weight.pack_weight(weight, format, **options))


def as_fast(weight: reference.PackedWeight) -> PackedWeight:
    """The same storage as a `PackedWeight` of this package."""
    if isinstance(weight, PackedWeight):
        return weight
    return PackedWeight(weight.format, weight.shape, weight.fields, weight.options)


def numbers_of(weight: reference.PackedWeight, dtype: torch.dtype, interpreted: bool = False) -> Tensor:
    """Ŵ [N, K], computed in float32 and rounded once to dtype: by a kernel, in tiles, or by the reference.

    With `interpreted`, a CPU may interpret the kernel.
    """
    if why_not_dequantize_kernel(weight, interpreted) is None:
        from optimized import kernels

        return kernels.packed_dequantize(kernels.storage_of(weight), dtype)
    if why_not_tiled(weight) is None:
        return dequantized(weight, dtype)
    return reference.PackedWeight.dequantize(weight, dtype)
