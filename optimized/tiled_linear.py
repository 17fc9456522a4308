"""Rows that choose their expert or adapter, by the Triton kernels over tiles of rows of `nodes.tiled`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optimized.nodes.tiled import TiledBatch, TiledExperts
from optimized.row_tiles import RowTiles


def tiled_grouped_linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    *,
    index: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """`lora_grouped_linear` of checked operands without dropout, by an index [*] or by the offsets of sorted rows."""
    experts, rows = len(lora_A), math.prod(x.shape[:-1])
    block = _block(rows, x, lora_A)
    if index is not None:
        tiles = RowTiles.of_index(index.reshape(-1), experts, block)
    else:
        assert offsets is not None
        tiles = RowTiles.of_offsets(offsets, rows, block)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    scales = torch.full((experts,), scale, dtype=wide, device=x.device)
    return TiledExperts.apply(x, tiles, weight, bias, lora_A, lora_B, scales)  # type: ignore[no-any-return,no-untyped-call]


def tiled_batched_linear(
    x: Tensor,
    adapter_index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: Tensor,
    ranks: Tensor | None,
) -> Tensor:
    """`lora_batched_linear` of checked operands."""
    index = adapter_index.clone()  # it may change before backward
    tiles = RowTiles.of_index(index.reshape(-1), len(lora_A), _block(index.numel(), x, lora_A))
    held = (scale.detach().clone(), None if ranks is None else ranks.clone())
    return TiledBatch.apply(x, index, tiles, *held, weight.detach(), bias, lora_A, lora_B)  # type: ignore[no-any-return,no-untyped-call]


def _block(rows: int, x: Tensor, lora_A: Tensor) -> int:
    from optimized.kernels import tile_rows

    return tile_rows(rows, len(lora_A), x.dtype)
