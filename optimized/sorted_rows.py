"""The rows of a batch sorted by adapter: one sort for forward and backward, and products of each adapter's segment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """The rows of one adapter among the sorted rows: from `first` up to `last`."""

    first: int
    last: int
    adapter: int
    rank: int


@dataclass(frozen=True)
class SortedRows:
    """The rows of a batch that have an adapter of rank 1 at least, in the order of their adapters.

    Attributes:
        rows: [R], their numbers in the batch; None if they are the whole batch in its own order.
        segments: one for each adapter that some row has.
    """

    rows: Tensor | None
    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, index: Tensor, ranks: list[int]) -> SortedRows:
        """Sort the rows of an index [M] of adapters with these ranks."""
        adapters = index.tolist()
        by_adapter: list[list[int]] = [[] for _ in ranks]
        for row, adapter in enumerate(adapters):
            if adapter >= 0:
                by_adapter[adapter].append(row)
        chosen: list[int] = []
        segments = []
        for adapter, rows in enumerate(by_adapter):
            if rows and ranks[adapter]:
                segments.append(Segment(len(chosen), len(chosen) + len(rows), adapter, ranks[adapter]))
                chosen += rows
        whole = len(chosen) == len(adapters) and chosen == list(range(len(adapters)))
        return cls(None if whole else torch.tensor(chosen, dtype=torch.int64, device=index.device), tuple(segments))

    def __len__(self) -> int:
        return self.segments[-1].last if self.segments else 0

    def ends(self, adapters: int) -> list[int]:
        """The end of the rows of each of all adapters among the sorted rows."""
        found = [0] * adapters
        for segment in self.segments:
            found[segment.adapter] = segment.last - segment.first
        return list(accumulate(found))

    def gathered(self, matrix: Tensor, dtype: torch.dtype) -> Tensor:
        """The sorted rows of a matrix [M, P], in a dtype."""
        chosen = matrix if self.rows is None else matrix.index_select(0, self.rows)
        return chosen if chosen.dtype == dtype else chosen.to(dtype)

    def add(self, matrix: Tensor, update: Tensor) -> None:
        """Add an update of the sorted rows to a matrix in place."""
        if update.dtype != matrix.dtype:
            update = update.to(matrix.dtype)
        if self.rows is None:
            matrix.add_(update)
        else:
            matrix.index_add_(0, self.rows, update)

    def pieces(self, *matrices: Tensor) -> Iterator[tuple[Segment, tuple[Tensor, ...]]]:
        """Each segment, and its part of the sorted matrices."""
        for segment in self.segments:
            yield segment, tuple(matrix[segment.first : segment.last] for matrix in matrices)
