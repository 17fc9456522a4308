"""The choice between the autograd node for batches of several adapters and the formula of the reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from optimized.dispatch.fused_node import why_not_fused
from optimized.matrices import autocast_dtype
from optimized.sorted_rows import SortedRows


def why_not_batched(x: Tensor, *parameters: Tensor | None) -> str | None:
    """The reason why the reference must compute a batch, or None if the node that sorts the rows can."""
    if reason := why_not_fused(x, *parameters):
        return reason
    if autocast_dtype(x) is not None:
        return "autocast chooses the dtype of each product"
    return None


DENSE = 64  # the sum of all ranks up to which products with all adapters take less time than sorting rows


def why_not_dense(x: Tensor, *parameters: Tensor | None) -> str | None:
    """The reason to multiply each row with its own adapter alone, or None to multiply it with all adapters.

    Without backward, which sorts the rows in any case, 8 adapters of rank 8 and 512 rows of 256 features took 1.09
    (1.02-1.16) times less time on a CPU than sorted rows, 64 rows 1.17 times; as much at rank 16 and 1024 features.
    """
    tensors = [t for t in (x, *parameters) if t is not None]
    lora_A, lora_B = tensors[-2:]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return "backward needs the rows sorted"
    if not x.is_cpu or x.dtype.itemsize == 2 or len({t.dtype for t in tensors}) > 1:
        return "all adapters at once were measured on a CPU, in one dtype of 32 bits or more"
    if not 0 < lora_A.shape[0] * lora_A.shape[1] <= DENSE:
        return f"the ranks of all adapters together are not 1 to {DENSE}"
    if not bool(lora_B.isfinite().all()):
        return "a number of lora_B is not finite, and would show in the rows of other adapters"
    return None


def why_not_grouped(batch: SortedRows, compute: torch.dtype, lora_A: Tensor, lora_B: Tensor) -> str | None:
    """The reason to multiply the rows of each adapter one after the other, or None for torch's grouped product.

    With 8 adapters and rank 8 on a CPU, the grouped product took a third of the time of a loop.
    """
    rank = lora_A.shape[1]
    if not hasattr(F, "grouped_mm"):
        return "this release of PyTorch has no grouped product"
    if any(segment.rank != rank for segment in batch.segments):
        return "the grouped product has one rank, and would read beyond the others"
    if not lora_A.is_cpu or {compute, lora_A.dtype} != {torch.float32}:
        return "the grouped product was measured in float32 on a CPU alone"
    if not (lora_A.is_contiguous() and lora_B.is_contiguous()):
        return "the grouped product needs packed adapters"
    if any(size % 4 for size in (*lora_A.shape[1:], lora_B.shape[1])):
        return "the grouped product needs rows of multiples of 16 bytes"
    return None
