"""The choice between torch's grouped product and one product for each expert."""

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNED = 16  # bytes of which grouped_mm wants multiples, between rows and at the start


def why_not_grouped(x: Tensor, *others: Tensor) -> str | None:
    """The reason why ``F.grouped_mm`` cannot multiply these operands, or None if it can.

    Each expert's rows are then multiplied by a product of their own, inside the same autograd node.
    """
    if not hasattr(F, "grouped_mm"):
        return "this torch has no grouped_mm"
    if len({t.dtype for t in (x, *others)}) > 1:
        return "grouped_mm takes operands of one dtype"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"grouped_mm does not compute in {str(x.dtype).removeprefix('torch.')}"
    return next((reason for t in (x, *others) if (reason := _why_not_laid_out(t))), None)


def _why_not_laid_out(t: Tensor) -> str | None:
    """The reason why grouped_mm does not take a tensor as it lies in memory, or None."""
    if min(t.shape) < 2:
        return "grouped_mm needs two rows and two columns at least"
    if 1 not in t.stride()[-2:] or t.data_ptr() % ALIGNED:
        return "grouped_mm needs rows or columns that are packed and aligned"
    if any(stride != 1 and stride * t.element_size() % ALIGNED for stride in t.stride()):
        return f"grouped_mm needs strides of multiples of {ALIGNED} bytes"
    return None
