"""Rows that choose their expert or adapter as one autograd node around Triton kernels over tiles of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from optimized.matrices import as_matrix, unflattened
from optimized.row_tiles import RowTiles


class TiledExperts(torch.autograd.Function):
    """(x, tiles, W, b, A, B, scales) → y for operands of one dtype, with gradients for x, A and B.

    Forward is one kernel, which gathers the rows, multiplies them with W_e and A_e, writes S, adds the update and puts
    the rows in their places. Backward is the same kernel over g for dX and T, and one for each of dA and dB. Saved
    besides x and the parameters are S and the table of tiles.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        tiles: RowTiles,
        weight: Tensor | None,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scales: Tensor,
    ) -> Tensor:
        from optimized import kernels

        y, S = kernels.grouped_lora_linear(as_matrix(x, lora_A.shape[2]), tiles, weight, bias, lora_A, lora_B, scales)
        needs_x, needs_A, needs_B = (ctx.needs_input_grad[place] for place in (0, 4, 5))
        ctx.block, ctx.shape = tiles.block, x.shape
        kept = (x if needs_A else None, weight if needs_x else None, lora_A, lora_B, S if needs_B else None, scales)
        ctx.save_for_backward(*kept, *tiles[1:])
        return y if x.dim() == 2 else unflattened(y, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_A, lora_B, S, scales, *table = ctx.saved_tensors
        needs_x, needs_A, needs_B = (ctx.needs_input_grad[place] for place in (0, 4, 5))
        found = tiled_gradients(
            as_matrix(g, lora_B.shape[1]),
            as_matrix(x, lora_A.shape[2]) if needs_A else None,
            RowTiles(ctx.block, *table),
            weight,
            (lora_A, lora_B, scales, None),
            S if needs_B else None,
            needs_x,
        )
        dX, dA, dB = found
        return None if dX is None else dX.view(ctx.shape), None, None, None, dA, dB, None


class TiledBatch(torch.autograd.Function):
    """(x, index, tiles, scale, ranks, W, b, A, B) → y for operands of one dtype, with gradients for x, b, A and B.

    The kernels of `TiledExperts` with one weight for all groups; rows without an adapter get the base alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        index: Tensor,
        tiles: RowTiles,
        scale: Tensor,
        ranks: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
    ) -> Tensor:
        from optimized import kernels

        L, wide = len(lora_A), torch.float64 if x.dtype == torch.float64 else torch.float32
        scales, of_ranks = scale.to(wide), None if ranks is None else ranks.int()
        shared, shared_bias = weight.expand(L, -1, -1), None if bias is None else bias.expand(L, -1)
        x2 = as_matrix(x, weight.shape[1])
        operands = (shared, shared_bias, lora_A, lora_B, scales, of_ranks)
        y, S = kernels.grouped_lora_linear(x2, tiles, *operands, base_alone=True)
        ctx.block = tiles.block
        ctx.save_for_backward(
            *(x, index, weight, bias, lora_A, lora_B, S if ctx.needs_input_grad[8] else None, scales, of_ranks),
            *tiles[1:],
        )
        return y if x.dim() == 2 else unflattened(y, x.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, index, weight, bias, lora_A, lora_B, S, scales, ranks, *table = ctx.saved_tensors
        needs = dict(
            zip(("x", "bias", "lora_A", "lora_B"), (ctx.needs_input_grad[i] for i in (0, 6, 7, 8)), strict=True)
        )
        if torch.is_grad_enabled():
            from optimized.nodes.batched import differentiable

            found = differentiable(needs, g, x, index, (weight, bias, lora_A, lora_B), scales, ranks)
            return found["x"], None, None, None, None, None, found["bias"], found["lora_A"], found["lora_B"]
        g2 = as_matrix(g, weight.shape[0])
        dX, dA, dB = tiled_gradients(
            g2,
            as_matrix(x, weight.shape[1]) if needs["lora_A"] else None,
            RowTiles(ctx.block, *table),
            weight.expand(len(lora_A), -1, -1) if needs["x"] else None,
            (lora_A, lora_B, scales, ranks),
            S,
            needs["x"],
            base_alone=True,
        )
        dX = None if dX is None else dX.view(x.shape)
        return dX, None, None, None, None, None, g2.sum(0) if needs["bias"] else None, dA, dB


def tiled_gradients(
    g: Tensor,
    x: Tensor | None,
    tiles: RowTiles,
    weight: Tensor | None,
    adapters: tuple[Tensor, Tensor, Tensor, Tensor | None],
    S: Tensor | None,
    needs_x: bool,
    base_alone: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dX if it is needed, dA if x is given, and dB if S is given.

    Args:
        adapters: lora_A, lora_B, scales and ranks.
    """
    from optimized import kernels

    lora_A, lora_B, scales, ranks = adapters
    dX = dA = dB = None
    if needs_x or x is not None:
        base = None if weight is None else weight.mT
        factors = (lora_B.mT, lora_A.mT, scales, ranks)
        dX, T = kernels.grouped_lora_linear(g, tiles, base, None, *factors, base_alone=base_alone)
        if x is not None:
            dA = torch.empty_like(lora_A, memory_format=torch.contiguous_format)
            kernels.grouped_weight_grad(x, T, tiles, scales, dA.mT, ranks)
    if S is not None:
        dB = torch.empty_like(lora_B, memory_format=torch.contiguous_format)
        kernels.grouped_weight_grad(g, S, tiles, scales, dB, ranks)
    return dX if needs_x else None, dA, dB
