"""The LoRA linear layer as one autograd node: the base product and the update, summed in place."""

import torch
from torch import Tensor

from optimized.dispatch.fused_node import is_plain, why_not_fused
from optimized.dropout import NO_DROPOUT, Dropout
from optimized.nodes.general import GeneralLoRALinear, general_forward
from optimized.nodes.plain import plain_apply
from optimized.nodes.same_dtype import same_dtype_apply
from reference.config import check_dropout
from reference.linear import check_operands
from reference.linear import lora_linear as plain_lora_linear


def lora_linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    *,
    dropout: float = 0.0,
    dropout_position: str = "post",
    training: bool = False,
) -> Tensor:
    """``y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ``: `reference.lora_linear`, with its shapes, dtypes and errors.

    Besides x and the parameters, x Aᵀ and one mask bit for each element under dropout are saved for backward.
    If `why_not_fused` gives a reason, the reference computes.
    """
    check_dropout(dropout, dropout_position)
    rate = dropout if training else 0.0
    return fused_linear(x, weight, bias, lora_A, lora_B, scale, rate, dropout_position)


def fused_linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    rate: float = 0.0,
    position: str = "post",
    recompute: bool = False,
) -> Tensor:
    """`lora_linear` with dropout of probability `rate`, which the caller has checked.

    With `recompute` only x and the parameters are saved: backward computes x Aᵀ again, and draws the dropout mask
    again from its seed.
    """
    if not rate and is_plain(x, weight, bias, lora_A, lora_B, scale):
        node = plain_apply if x.is_cpu and x.dtype.itemsize > 2 else same_dtype_apply
        return node(x, weight, bias, lora_A, lora_B, scale, recompute)  # type: ignore[no-any-return]
    check_operands(x, weight, bias, lora_A, lora_B)
    if why_not_fused(x, weight, lora_A, lora_B):
        return plain_lora_linear(
            x, weight, bias, lora_A, lora_B, scale, dropout=rate, dropout_position=position, training=True
        )
    drop = Dropout.seeded(rate, position) if rate else NO_DROPOUT
    if not torch.is_grad_enabled():
        return general_forward(x, weight, bias, lora_A, lora_B, scale, drop)[0]
    return GeneralLoRALinear.apply(x, weight, bias, lora_A, lora_B, scale, drop, recompute)  # type: ignore[no-any-return,no-untyped-call]
