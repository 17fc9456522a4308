"""The fused LoRA layer in float32 or float64 on a CPU: its formulas with minimal overhead."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from optimized.dropout import NO_DROPOUT
from optimized.matrices import FEW_ELEMENTS, as_matrix, changeable, unflattened
from optimized.nodes.general import general_backward
from reference import torch_internals


class PlainLoRALinear(torch.autograd.Function):
    """(x, W, b, A, B, scale, recompute) → y for operands of one dtype, with gradients for x, b, A and B.

    Backward: ``T = g B`` once, ``dX = g W + scale · T A`` summed in place, ``dA = scale · Tᵀ x``,
    ``dB = scale · gᵀ S`` with ``S = x Aᵀ``, which is saved besides the operands. In small layers the
    overhead dominates: choosing each product's implementation, as `same_dtype` does, took 4 % of the time.
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
        S = F.linear(x2, lora_A)
        y = changeable(F.linear(x2, weight, bias)).addmm_(S, lora_B.t(), alpha=scale)
        needs_x, _, _, needs_A, needs_B, _, _ = ctx.needs_input_grad
        ctx.scale, ctx.shape = scale, x.shape
        ctx.save_for_backward(
            x if needs_A or (needs_B and recompute) else None,
            weight if needs_x else None,
            lora_A,
            lora_B,
            S if needs_B and not recompute else None,
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
        needs_x, _, needs_bias, needs_A, needs_B, _, _ = ctx.needs_input_grad
        dX = dbias = dA = dB = None
        if g.dim() != 2 or not g.is_contiguous():
            g = as_matrix(g, lora_B.shape[0])
        if x is not None and (x.dim() != 2 or not x.is_contiguous()):
            x = as_matrix(x, lora_A.shape[1])
        if needs_x or needs_A:
            T = g.mm(lora_B)
        if needs_x:
            dX = g.mm(weight).addmm_(T, lora_A, alpha=ctx.scale)
            dX = dX if len(ctx.shape) == 2 else dX.view(ctx.shape)
        if needs_A:
            dA = torch.addmm(lora_A, T.t(), x, beta=0, alpha=ctx.scale)
        if needs_B:
            S = F.linear(x, lora_A) if S is None else S
            if g.numel() <= FEW_ELEMENTS:
                dB = torch.addmm(lora_B, g.t(), S, beta=0, alpha=ctx.scale)
            else:
                dB = torch.addmm(lora_B.t(), S.t(), g, beta=0, alpha=ctx.scale).t()
        if needs_bias:
            dbias = g.sum(0)
        return dX, None, dbias, dA, dB, None, None


plain_apply = torch_internals.plain_apply(PlainLoRALinear)
