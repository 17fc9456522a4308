"""The fused LoRA layer for operands of one dtype, in 16 bits or on a GPU, with a choice for each product."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from optimized.dropout import NO_DROPOUT
from optimized.matrices import (
    as_dtype,
    as_matrix,
    few_for_16_bits,
    product,
    product_of_rows,
    summed,
    unflattened,
)
from optimized.nodes.general import general_backward
from reference import torch_internals


class SameDtypeLoRALinear(torch.autograd.Function):
    """(x, W, b, A, B, scale, recompute) → y for operands of 16 bits or on a GPU, with gradients for x, b, A and B.

    Backward: ``T = g B`` once, ``dX = g W + scale · T A`` summed in place, ``dA = scale · Tᵀ x``,
    ``dB = scale · gᵀ S`` with ``S = x Aᵀ``, which is saved besides the operands.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        recompute: bool,
    ) -> Tensor:
        x2 = x if x.dim() == 2 and x.is_contiguous() else as_matrix(x, lora_A.shape[1])
        few = x.dtype.itemsize == 2 and few_for_16_bits(x2)
        wide_x, A, B = as_dtype(torch.float32, x2, lora_A, lora_B) if few else (x2, lora_A, lora_B)
        S = F.linear(wide_x, A)
        y = summed(x2, weight.t(), bias, S, B.t(), scale)
        needs_x, _, _, needs_A, needs_B, *_ = ctx.needs_input_grad
        ctx.scale, ctx.shape = scale, x.shape
        ctx.save_for_backward(
            x if needs_A or (needs_B and recompute) else None,
            weight if needs_x else None,
            lora_A,
            lora_B,
            (S.to(x.dtype) if few else S) if needs_B and not recompute else None,
            None,
        )
        return y if x.dim() == 2 else unflattened(y, x.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or torch_internals.is_autocast(g.device.type):
            ctx.drop, ctx.autocast, ctx.x_dtype, ctx.bias_dtype = NO_DROPOUT, None, g.dtype, g.dtype
            dX, dbias, dA, dB = general_backward(ctx, g)
            return dX, None, dbias, dA, dB, None, None
        x, weight, lora_A, lora_B, S, _ = ctx.saved_tensors
        needs_x, _, needs_bias, needs_A, needs_B, *_ = ctx.needs_input_grad
        dX = dbias = dA = dB = None
        if not (g.dim() == 2 and g.is_contiguous()):
            g = as_matrix(g, lora_B.shape[0])
        if x is not None and not (x.dim() == 2 and x.is_contiguous()):
            x = as_matrix(x, lora_A.shape[1])
        wide_g, wide_x, A, B = g, x, lora_A, lora_B
        if g.dtype.itemsize == 2 and few_for_16_bits(g):
            wide_g, wide_x, A, B, S = as_dtype(torch.float32, g, x, A, B, S)
        if needs_x or needs_A:
            T = wide_g.mm(B)
        if needs_x:
            dX = summed(g, weight, None, T, A, ctx.scale)
            dX = dX if len(ctx.shape) == 2 else dX.view(ctx.shape)
        if needs_A:
            dA = product(T.t(), wide_x, ctx.scale, lora_A)
        if needs_B:
            S = F.linear(wide_x, A) if S is None else S
            dB = product_of_rows(wide_g, S, ctx.scale, lora_B)
        if needs_bias:
            dbias = g.sum(0)
        return dX, None, dbias, dA, dB, None, None


same_dtype_apply = torch_internals.plain_apply(SameDtypeLoRALinear)
