"""The feed-forward block as one autograd node that saves gate and up, and computes the rest again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optimized import projections as fused
from optimized.activations import gated_activation, gated_activation_gradients
from optimized.matrices import as_dtype, as_matrix, autocast_as, autocast_dtype, unflattened, without_autocast
from optimized.nodes.blocks import differentiable_gradients, grouped, needs_of
from optimized.projections import Operands
from reference.mlp import lora_mlp as plain_lora_mlp


class LoRAMLP(torch.autograd.Function):
    """(scales, activation, x, and W, b, A, B of gate (if any), up and down) → y."""

    @staticmethod
    def forward(ctx: Any, scales: Sequence[float], activation: str, x: Tensor, *operands: Tensor | None) -> Tensor:
        *inner, down = grouped(operands, scales)
        autocast = autocast_dtype(x)
        (x2,) = autocast_as(autocast, as_matrix(x, inner[0].weight.shape[1]))
        with without_autocast(x):
            lifts, _ = fused.forward(x2, [p.autocast_as(autocast) for p in inner])
            h = gated_activation(lifts, activation)
            (y,), _ = fused.forward(h, [down.autocast_as(autocast)])
        ctx.scales, ctx.activation, ctx.autocast = scales, activation, autocast
        ctx.save_for_backward(x, *lifts, *operands)
        return y if x.dim() == 2 else unflattened(y, x.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        inputs = len(ctx.scales) - 1  # gate and up, or up alone
        x, *saved = ctx.saved_tensors
        lifts, operands = saved[:inputs], saved[inputs:]
        projections, needs = grouped(operands, ctx.scales), needs_of(ctx.needs_input_grad[3:])
        needs_x = ctx.needs_input_grad[2]
        if torch.is_grad_enabled():
            plain = _Plain(ctx.activation)
            return None, None, *differentiable_gradients(plain, x, projections, needs_x, needs, [g], ctx.autocast)
        with without_autocast(x):
            *inner, down = (p.autocast_as(ctx.autocast) for p in projections)
            *inner_needs, down_needs = needs
            wants_lifts = needs_x or any(flag for need in inner_needs for flag in need)
            rows = as_matrix(g, down.weight.shape[0])
            d_h, T = fused.back_through([rows], [down], needs_x=wants_lifts)
            h, d_lifts = gated_activation_gradients(d_h, lifts, ctx.activation)
            S = fused.middle(h, [down]) if down_needs.lora_B else None
            of_down = fused.of_operands([rows], h, S, T, [down], [down_needs], projections[-1:])
            del h, S, T, d_h
            dX, of_inner = None, list[Tensor | None]([None] * (4 * inputs))
            if wants_lifts:
                (x2,) = autocast_as(ctx.autocast, as_matrix(x, x.shape[-1]))
                dX, T = fused.back_through(d_lifts, inner, needs_x=needs_x)
                S = fused.middle(x2, inner) if any(need.lora_B for need in inner_needs) else None
                of_inner = fused.of_operands(d_lifts, x2, S, T, inner, inner_needs, projections[:-1])
        if dX is not None:
            dX = as_dtype(x.dtype, dX)[0].view(x.shape)
        return None, None, dX, *of_inner, *of_down


class _Plain:
    """The reference's output for x and the projections, as a tuple of one."""

    def __init__(self, activation: str) -> None:
        self.activation = activation

    def __call__(self, x: Tensor, projections: Sequence[Operands]) -> tuple[Tensor]:
        *gate, up, down = projections
        return (plain_lora_mlp(x, gate[0] if gate else None, up, down, self.activation),)
