"""Rows that choose their expert as one autograd node: the base and the update of all experts, summed in place."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from optimized.dropout import Dropout, pack
from optimized.groups import Groups, add_grouped, grouped_outer, grouped_product, grouped_shrink
from optimized.matrices import (
    as_dtype,
    as_matrix,
    autocast_as,
    autocast_dtype,
    compute_dtype,
    linear,
    masked,
    unflattened,
    without_autocast,
)


class GroupedLoRALinear(torch.autograd.Function):
    """(x, groups, W, b, A, B, scale, dropout) → y, with gradients for x, A and B; W and b are frozen.

    The rows are sorted once. Backward: ``T = g B`` once, ``dX = g W + scale · T A`` summed in place,
    ``dA = scale · Tᵀ x`` and ``dB = scale · gᵀ S`` over each expert's rows, with ``S = x Aᵀ``. Saved besides x and the
    parameters are S, the order of the rows and a bit for each element under dropout. ``W + scale · B A`` is never
    computed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        groups: Groups,
        weight: Tensor | None,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        drop: Dropout,
    ) -> Tensor:
        x2 = as_matrix(x, lora_A.shape[2])
        autocast = autocast_dtype(x)
        rows, W, b, A, B = autocast_as(autocast, groups.gathered(x2), weight, bias, lora_A, lora_B)
        S = mask = None
        with without_autocast(x):
            y = _base(rows, W, b, groups, B.shape[1])
            if drop.rate < 1.0:
                mask = drop.draw(groups.rows, A[0], B[0])
                on_x, on_update = drop.split(mask)
                wide, wide_A, wide_B = as_dtype(compute_dtype(rows, A, B), rows, A, B)
                S = grouped_shrink(masked(wide, on_x), wide_A.mT, groups)
                add_grouped(y, S, wide_B.mT, scale / (1.0 - drop.rate), groups, on_update)
                (S,) = as_dtype(A.dtype, S)
        needs_x, needs_A, needs_B = (ctx.needs_input_grad[place] for place in (0, 4, 5))
        ctx.groups, ctx.scale, ctx.drop, ctx.autocast = groups._replace(order=None), scale, drop, autocast
        ctx.shape, ctx.x_dtype = x.shape, x.dtype
        bits = None if mask is None else pack(mask)
        ctx.save_for_backward(
            x if needs_A else None,
            groups.order,
            weight if needs_x else None,
            lora_A,
            lora_B,
            S if needs_B else None,
            bits,
        )
        y = groups.scattered(y, x2.shape[0])
        return y if x.dim() == 2 else unflattened(y, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(g):
            dX, dA, dB = _gradients(ctx, g)
        return dX, None, None, None, dA, dB, None, None


def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """dX, dA and dB, each in its operand's dtype, or None if not needed."""
    x, order, weight, lora_A, lora_B, S, bits = ctx.saved_tensors
    groups, drop = ctx.groups._replace(order=order), ctx.drop
    needs_x, needs_A, needs_B = (ctx.needs_input_grad[place] for place in (0, 4, 5))
    g = as_matrix(g, lora_B.shape[1])
    count, g = g.shape[0], groups.gathered(g)
    x = None if x is None else groups.gathered(as_matrix(x, lora_A.shape[2]))
    x, W, A, B = autocast_as(ctx.autocast, x, weight, lora_A, lora_B)
    dX = dA = dB = None
    if needs_x:
        dX = _base(g, None if W is None else W.mT, None, groups, A.shape[2])
    if drop.rate < 1.0:
        on_x, on_update = drop.split(drop.restore(bits, groups.rows, A[0], B[0]))
        wide_g, x, A, B, S = as_dtype(compute_dtype(g, A, B), g, x, A, B, S)
        wide_g, scale = masked(wide_g, on_update), ctx.scale / (1.0 - drop.rate)
        if needs_x or needs_A:
            T = grouped_shrink(wide_g, B, groups)
            if dX is not None:
                add_grouped(dX, T, A, scale, groups, on_x)
            if needs_A:
                dA = grouped_outer(T, masked(x, on_x), scale, groups, lora_A)
        if needs_B:  # as dBᵀ, with the narrow operand on the left
            dB = grouped_outer(S, wide_g, scale, groups, lora_B).mT
    else:
        dA, dB = (torch.zeros_like(t) if needed else None for t, needed in ((lora_A, needs_A), (lora_B, needs_B)))
    if dX is not None:
        dX = groups.scattered(dX.to(ctx.x_dtype), count).view(ctx.shape)
    return dX, dA, dB


def _base(rows: Tensor, weight: Tensor | None, bias: Tensor | None, groups: Groups, width: int) -> Tensor:
    """``x_e W_eᵀ + b_e`` of sorted rows; zeros without a weight."""
    if weight is None:
        return rows.new_zeros(rows.shape[0], width)
    if bias is None:
        return grouped_product(rows, weight.mT, groups)
    if not rows.is_cpu:
        return grouped_product(rows, weight.mT, groups) + groups.repeated(bias)
    y = rows.new_empty(rows.shape[0], width)
    for e, own in groups.busy():  # grouped_mm adds no bias, which would be one more pass
        y[own] = linear(rows[own], weight[e], bias[e])
    return y
