"""The layer on a packed base as one autograd node: ``y = x Ŵᵀ + b + scale · (x Aᵀ) Bᵀ``."""

from typing import Any

import torch
from torch import Tensor

import reference
from optimized.dispatch.packed_node import why_not_packed
from optimized.dropout import NO_DROPOUT, Dropout
from optimized.nodes.packed import PackedLoRALinear, packed_forward
from reference.config import check_dropout
from reference.packed_product import Dequantizable, check_packed_operands


def lora_packed_linear(
    x: Tensor,
    weight: Dequantizable,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    *,
    compute_dtype: torch.dtype | None = None,
    dropout: float = 0.0,
    dropout_position: str = "post",
    training: bool = False,
) -> Tensor:
    """``y = x Ŵᵀ + b + scale · (x Aᵀ) Bᵀ``: `reference.lora_packed_linear`, with its shapes, dtypes and errors.

    Besides x, the parameters and the storage P, x Aᵀ and one mask bit for each element under dropout are saved for
    backward, which computes Ŵ again in tiles. If `why_not_packed` gives a reason, the reference computes.
    """
    check_dropout(dropout, dropout_position)
    rate = dropout if training else 0.0
    return fused_packed_linear(x, weight, bias, lora_A, lora_B, scale, compute_dtype, rate, dropout_position)


def fused_packed_linear(
    x: Tensor,
    weight: Dequantizable,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    compute_dtype: torch.dtype | None,
    rate: float = 0.0,
    position: str = "post",
    recompute: bool = False,
    interpreted: bool = False,
) -> Tensor:
    """`lora_packed_linear` with dropout of probability `rate`, which the caller has checked.

    With `recompute`, backward computes x Aᵀ again, and draws the dropout mask again from its seed. With
    `interpreted`, a CPU may interpret kernels.
    """
    check_packed_operands(x, weight, bias, lora_A, lora_B)
    if why_not_packed(weight, x, bias, lora_A, lora_B):
        dropout: Any = {"dropout": rate, "training": rate > 0.0}
        return reference.lora_packed_linear(
            x, weight, bias, lora_A, lora_B, scale, compute_dtype=compute_dtype, dropout_position=position, **dropout
        )
    drop = Dropout.seeded(rate, position) if rate else NO_DROPOUT
    how: Any = x, weight, bias, lora_A, lora_B, scale, compute_dtype, drop, interpreted
    if not torch.is_grad_enabled():
        return packed_forward(*how)[0]
    return PackedLoRALinear.apply(*how, recompute)  # type: ignore[no-any-return,no-untyped-call]
