"""The LoRA layer as one autograd node around Triton kernels: three passes over x and g besides the large products."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from optimized.dispatch.routes import ONE_READING
from optimized.dropout import CountedDropout
from optimized.matrices import as_matrix, autocast_dtype, unflattened
from optimized.nodes.general import general_backward
from optimized.products import linear_expand, lora_shrink, shrink_and_grad, weight_grad


class TritonLoRALinear(torch.autograd.Function):
    """(x, W, b, A, B, scale, dropout, recompute, routes) → y for operands of one dtype; gradients for x, b, A and B.

    Forward: ``S = x Aᵀ``, then ``y = x Wᵀ + b + scale · S Bᵀ`` by `linear_expand`. Backward: T = g B and
    ``dB = scale · gᵀ S`` by `shrink_and_grad`, ``dX = g W + scale · T A`` by `linear_expand`, ``dA = scale · Tᵀ x``.
    S is saved besides the operands, in float32 at least, unless `recompute` is set. `routes` are taken whatever their
    cost.

    Dropout at `pre` masks x and the update of dX; dropout at `post` masks the update of y, and the g in T and dB. Each
    kernel computes the mask itself. The factor 1/(1-p) is part of scale.
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
        drop: CountedDropout,
        recompute: bool,
        routes: Collection[str],
    ) -> Tensor:
        x2 = as_matrix(x, lora_A.shape[1])
        on_x, on_update = drop.split(drop.kept)
        S = lora_shrink(x2, lora_A, x.dtype, on_x)
        y = linear_expand(x2, weight, bias, S, lora_B, scale / (1.0 - drop.rate), routes, on_update)
        needs_x, _, _, needs_A, needs_B, *_ = ctx.needs_input_grad
        ctx.scale, ctx.drop, ctx.shape, ctx.routes = scale, drop, x.shape, routes
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
        if torch.is_grad_enabled() or autocast_dtype(g) is not None:
            ctx.autocast, ctx.x_dtype, ctx.bias_dtype = None, g.dtype, g.dtype
            dX, dbias, dA, dB = general_backward(ctx, g)
            return dX, None, dbias, dA, dB, None, None, None, None
        x, weight, lora_A, lora_B, S, _ = ctx.saved_tensors
        needs_x, _, needs_bias, needs_A, needs_B, *_ = ctx.needs_input_grad
        on_x, on_g = ctx.drop.split(ctx.drop.kept)
        scale = ctx.scale / (1.0 - ctx.drop.rate)
        dX = dA = dB = None
        T: Any = None
        g = as_matrix(g, lora_B.shape[0])
        if x is not None:
            x = as_matrix(x, lora_A.shape[1])
        if needs_B:
            S = lora_shrink(x, lora_A, g.dtype, on_x) if S is None else S
            dB = torch.empty_like(lora_B)
            if needs_x or needs_A:
                T = shrink_and_grad(g, lora_B, S, scale, g.dtype, dB, ONE_READING in ctx.routes, on_g)
            else:
                weight_grad(g, S, scale, g.dtype, dB, on_g)
        elif needs_x or needs_A:
            T = lora_shrink(g, lora_B.mT, g.dtype, on_g)
        if needs_x:
            dX = linear_expand(g, weight.mT, None, T, lora_A.mT, scale, ctx.routes, on_x)
            dX = dX if len(ctx.shape) == 2 else dX.view(ctx.shape)
        if needs_A:
            dA = torch.empty_like(lora_A)
            weight_grad(x, T, scale, g.dtype, dA.mT, on_x)
        return dX, None, g.sum(0) if needs_bias else None, dA, dB, None, None, None, None
