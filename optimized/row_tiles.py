"""The table of tiles for kernels over rows that choose their group, made on the device without waiting for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RowTiles(NamedTuple):
    """Tiles of at most `block` rows of one group.

    Attributes:
        block: the rows of a full tile.
        order: [M], int64, the numbers of the rows, sorted by group; those without a group are last.
        groups: [T], int32, the group of each tile; E for rows without a group, and E + 1 for a tile without rows.
        firsts: [T], int32, the first place of each tile's rows in `order`.
        ends: [E + 1], int32, the end of each group's rows in `order`; the last is M.
    """

    block: int
    order: Tensor
    groups: Tensor
    firsts: Tensor
    ends: Tensor

    @classmethod
    def of_index(cls, index: Tensor, groups: int, block: int) -> RowTiles:
        """The tiles of rows with these groups [M]; an index out of range is no group."""
        key = torch.where((index < 0) | (index >= groups), groups, index)
        key, order = torch.sort(key, stable=True)
        ends = torch.searchsorted(key.contiguous(), torch.arange(groups + 1, device=index.device).to(key), right=True)
        return cls._of(order, ends, block)

    @classmethod
    def of_offsets(cls, offsets: Tensor, rows: int, block: int) -> RowTiles:
        """The tiles of sorted rows with these ends [E]; the rows after the last end have no group."""
        ends = torch.cat([offsets.long(), torch.full((1,), rows, device=offsets.device)])
        return cls._of(torch.arange(rows, device=offsets.device), ends, block)

    @classmethod
    def _of(cls, order: Tensor, ends: Tensor, block: int) -> RowTiles:
        starts = torch.cat([ends.new_zeros(1), ends])  # one more than groups, for the tiles without rows
        tile_ends = torch.div(ends.diff(prepend=ends.new_zeros(1)) + block - 1, block, rounding_mode="floor").cumsum(0)
        tile_starts = torch.cat([ends.new_zeros(1), tile_ends])
        # each group has at most one tile that is not full, so that the number of tiles needs no reading of counts
        tiles = torch.arange(len(order) // block + len(ends), device=order.device)
        groups = torch.searchsorted(tile_ends, tiles, right=True)
        firsts = starts[groups] + (tiles - tile_starts[groups]) * block
        return cls(block, order, groups.int(), firsts.int(), ends.int())
