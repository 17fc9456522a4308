"""Query, key and value as one autograd node: one pass over x for all lora_A, and one for their gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optimized import projections as fused
from optimized.matrices import as_dtype, as_matrix, autocast_as, autocast_dtype, unflattened, without_autocast
from optimized.nodes.blocks import differentiable_gradients, grouped, needs_of
from optimized.projections import Operands
from reference.qkv import lora_qkv as plain_lora_qkv


class LoRAQKV(torch.autograd.Function):
    """(scales, x, and W, b, A, B of q, k and v) → q, k, v."""

    @staticmethod
    def forward(ctx: Any, scales: Sequence[float], x: Tensor, *operands: Tensor | None) -> tuple[Tensor, ...]:
        projections, autocast = grouped(operands, scales), autocast_dtype(x)
        (x2,) = autocast_as(autocast, as_matrix(x, projections[0].weight.shape[1]))
        with without_autocast(x):
            ys, S = fused.forward(x2, [p.autocast_as(autocast) for p in projections])
        if S is not None and any(need.lora_B for need in needs_of(ctx.needs_input_grad[2:])):
            (S,) = as_dtype(torch.promote_types(x2.dtype, projections[0].lora_A.dtype), S)
        else:
            S = None
        ctx.scales, ctx.autocast = scales, autocast
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, S, *operands)
        return tuple(y if x.dim() == 2 else unflattened(y, x.shape) for y in ys)

    @staticmethod
    def backward(ctx: Any, *gs: Tensor | None) -> tuple[Tensor | None, ...]:
        x, S, *operands = ctx.saved_tensors
        projections, needs = grouped(operands, ctx.scales), needs_of(ctx.needs_input_grad[2:])
        needs_x = ctx.needs_input_grad[1]
        if all(g is None for g in gs):
            return (None,) * (2 + len(operands))
        if torch.is_grad_enabled():
            return None, *differentiable_gradients(_plain, x, projections, needs_x, needs, gs, ctx.autocast)
        with without_autocast(x):
            x2, S = autocast_as(ctx.autocast, as_matrix(x, x.shape[-1]), S)
            cast = [p.autocast_as(ctx.autocast) for p in projections]
            rows = [None if g is None else as_matrix(g, p.weight.shape[0]) for g, p in zip(gs, cast, strict=True)]
            dX, T = fused.back_through(rows, cast, needs_x=needs_x)
            found = fused.of_operands(rows, x2, S, T, cast, needs, projections)
        if dX is not None:
            dX = as_dtype(x.dtype, dX)[0].view(x.shape)
        return None, dX, *found


def _plain(x: Tensor, projections: Sequence[Operands]) -> tuple[Tensor, ...]:
    q, k, v = projections
    return plain_lora_qkv(x, q, k, v)
