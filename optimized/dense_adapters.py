"""Batches by products of all rows with all adapters, of which each row keeps its own adapter's part."""

from __future__ import annotations

import torch
from torch import Tensor

from optimized.matrices import as_matrix, linear, unflattened


def dense_batched_linear(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: Tensor,
    ranks: Tensor | None,
) -> Tensor:
    """``y_i = x_i Wᵀ + b + scale_e · (x_i A_eᵀ) B_eᵀ``, without gradients.

    The products have the same shapes whatever adapters the rows have, and other adapters' parts are zeros. So a row has
    the same bits whatever the other rows are. lora_B must be finite, since zero times infinity is NaN.
    """
    adapters, rank = lora_A.shape[:2]
    with torch.no_grad():
        x2 = as_matrix(x, weight.shape[1])
        y = linear(x2, weight, bias)
        own = (index.reshape(-1, 1) == torch.arange(adapters))[:, :, None]
        if ranks is not None:
            own = own & (torch.arange(rank) < ranks[:, None])
        S = x2.mm(lora_A.reshape(adapters * rank, -1).t()).view(-1, adapters, rank)
        S = (S * scale.to(S.dtype)[:, None]).where(own, 0.0)
        y.addmm_(S.view(-1, adapters * rank), lora_B.transpose(1, 2).reshape(adapters * rank, -1))
    return y if x.dim() == 2 else unflattened(y, x.shape)
