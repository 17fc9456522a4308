"""The choice of a way from codes to numbers: by a Triton kernel, in tiles on a CPU, or by the reference."""

from torch import Tensor

import reference
from optimized.dispatch.triton_kernels import why_not_triton, why_not_triton_on
from optimized.packed import formats

WITH_KERNEL = ("nf4", "fp4", "int8_bitsandbytes", "int8_torchao", "fp8", "int4")
MOST_ROWS = 64  # see `why_not_product_kernel`
MOST_INTERPRETED = 2**14
"""The most elements of Ŵ, and multiplications, that a CPU computes in an interpreted kernel, as in `integers`."""


def why_not_tiled(weight: reference.PackedWeight) -> str | None:
    """The reason why the reference computes all numbers of a weight at once, or None for tiles.

    Args:
        weight: of any format; its fields are on one device.
    """
    device = _codes(weight).device
    if device.type != "cpu":
        return f"tiles are for the cache of a CPU: on {device.type} each operation is a launch"
    return formats.why_not_tiled(weight)


def why_not_dequantize_kernel(weight: reference.PackedWeight, interpreted: bool = False) -> str | None:
    """The reason why no kernel computes the numbers of a weight, or None if one does.

    Args:
        interpreted: whether a CPU may interpret the kernel, as for a `TritonLinearLoRA`.
    """
    if weight.format not in WITH_KERNEL or 0 in weight.shape:
        return f"no kernel reads {weight.format} {list(weight.shape)}"
    if not all(field.is_contiguous() for field in weight.fields.values()):
        return "the kernels read contiguous fields"
    device = _codes(weight).device
    if device.type == "cpu" and not interpreted:
        return "on a CPU tiles are faster than interpreted kernels"
    if reason := why_not_triton_on(device):
        return reason
    if device.type == "cpu" and weight.shape[0] * weight.shape[1] > MOST_INTERPRETED:
        return f"the interpreter is slow for more than {MOST_INTERPRETED} elements"
    return None


def why_not_product_kernel(weight: reference.PackedWeight, t: Tensor, interpreted: bool = False) -> str | None:
    """The reason to write Ŵ to memory before its product with t [M, K] or [M, N], or None for one kernel.

    One kernel reads the storage, a quarter of the bytes of a 16-bit Ŵ or half of them, for every tile of rows of t.
    With few rows the product takes as long as reading the weight; with many it computes each number again for every
    64 rows, and cuBLAS is faster.
    """
    if t.shape[0] > MOST_ROWS:
        return f"with more than {MOST_ROWS} rows each number would be computed again"
    if not t.numel():
        return "there are no rows"
    if reason := why_not_dequantize_kernel(weight, interpreted) or why_not_triton(t):
        return reason
    if t.device.type == "cpu" and t.shape[0] * weight.shape[0] * weight.shape[1] > 16 * MOST_INTERPRETED:
        return f"the interpreter is slow for more than {16 * MOST_INTERPRETED} multiplications"
    return None


def _codes(weight: reference.PackedWeight) -> Tensor:
    return next(iter(weight.fields.values()))
