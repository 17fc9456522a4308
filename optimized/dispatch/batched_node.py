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
