"""Rows that choose their expert as one autograd node in float32, with batched products of all experts' adapters."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from optimized.matrices import as_matrix, unflattened
from optimized.padded_rows import PaddedRows


class PaddedLoRALinear(torch.autograd.Function):
    """`nodes.grouped.GroupedLoRALinear` without dropout, for experts with similar numbers of rows.

    The rows lie in equally many places for each expert, so that one batched product multiplies them with all adapters;
    no element of x, y, g or dX is copied more often than for the frozen experts. The base is one batched product too,
    or with `same_bits` a product for each expert, which rounds as `F.linear` does. Saved besides x and the parameters
    are S and the places.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rows: PaddedRows,
        weight: Tensor | None,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        same_bits: bool,
    ) -> Tensor:
        placed = rows.gathered(as_matrix(x, lora_A.shape[2]))
        y = _base(placed, rows, None if weight is None else weight.mT, bias, lora_B.shape[1], same_bits)
        S = rows.cleared(torch.bmm(placed, lora_A.mT))
        y = rows.taken(y.baddbmm_(S, lora_B.mT, alpha=scale))
        needs_x, needs_A, needs_B = (ctx.needs_input_grad[place] for place in (0, 4, 5))
        ctx.counts, ctx.scale, ctx.shape, ctx.same_bits = rows.counts, scale, x.shape, same_bits
        ctx.save_for_backward(
            x if needs_A else None,
            weight if needs_x else None,
            lora_A,
            lora_B,
            S if needs_B else None,
            *rows[1:],
        )
        return y if x.dim() == 2 else unflattened(y, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_A, lora_B, S, *places = ctx.saved_tensors
        needs_x, needs_A, needs_B = (ctx.needs_input_grad[place] for place in (0, 4, 5))
        rows = PaddedRows(ctx.counts, *places)
        g = rows.gathered(as_matrix(g, lora_B.shape[1]))
        dX = dA = dB = None
        if needs_x or needs_A:
            T = rows.cleared(torch.bmm(g, lora_B))
            if needs_x:
                dX = _base(g, rows, weight, None, lora_A.shape[2], ctx.same_bits)
                dX = rows.taken(dX.baddbmm_(T, lora_A, alpha=ctx.scale)).view(ctx.shape)
            if needs_A:
                dA = _scaled_product(T.mT, rows.gathered(as_matrix(x, lora_A.shape[2])), ctx.scale)
        if needs_B:  # as dBᵀ, with the narrow operand on the left
            dB = _scaled_product(S.mT, g, ctx.scale).mT
        return dX, None, None, None, dA, dB, None, None


def _base(
    placed: Tensor, rows: PaddedRows, weight: Tensor | None, bias: Tensor | None, width: int, same_bits: bool
) -> Tensor:
    """``x_e w_e + b_e`` for weights w [E, K, N], with any values in empty places; zeros without a weight."""
    if weight is None:
        return placed.new_zeros(*placed.shape[:2], width)
    if not same_bits:
        return torch.bmm(placed, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), placed, weight)
    y = placed.new_empty(*placed.shape[:2], width)
    biases = (None,) * len(y) if bias is None else bias.unbind()
    for x, w, b, out in zip(rows.split(placed), weight.unbind(), biases, rows.split(y), strict=True):
        if b is None:
            torch.mm(x, w, out=out)
        else:
            torch.addmm(b, x, w, out=out)
    return y


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """``scale · left_e right_e``."""
    out = left.new_empty(left.shape[0], left.shape[1], right.shape[2])
    return torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)
