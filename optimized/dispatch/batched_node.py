"""The choice between the autograd node for batches of several adapters and the formula of the reference."""

from __future__ import annotations

from torch import Tensor

from optimized.dispatch.fused_node import why_not_fused
from optimized.matrices import autocast_dtype


def why_not_batched(x: Tensor, *parameters: Tensor | None) -> str | None:
    """The reason why the reference must compute a batch, or None if the node that sorts the rows can."""
    if reason := why_not_fused(x, *parameters):
        return reason
    if autocast_dtype(x) is not None:
        return "autocast chooses the dtype of each product"
    return None
