"""Rows sorted by group and padded to equally many places a group, for one batched product over all groups."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class PaddedRows(NamedTuple):
    """The places of rows among `groups` × `width`, where each group has its rows first.

    Attributes:
        counts: the number of rows of each group; the largest is the width.
        order: the number of the row in each place; in an empty place another row's, of the same group if it has one.
        places: [M], the place of each row; any place for an absent row.
        empty: the places without a row.   idle: those of groups without a row.
        absent: the numbers of the rows without a place, or None if each row has one.
    """

    counts: list[int]
    order: Tensor
    places: Tensor
    empty: Tensor
    idle: Tensor
    absent: Tensor | None

    @classmethod
    def of(cls, order: Tensor | None, ends: list[int], rows: int) -> PaddedRows:
        """Place `rows` rows whose numbers, sorted by group, are `order`, with the end of each group.

        Args:
            order: the numbers of the present rows; None if they are the first ones, sorted.
        """
        starts = np.array([0, *ends])  # numpy, because its fixed costs are a third of torch's
        counts = np.diff(starts)
        within = np.arange(counts.max())
        used = within < counts[:, None]
        sources = np.minimum(starts[:-1, None] + within, np.maximum(starts[1:, None] - 1, 0)).ravel()
        taken = np.flatnonzero(used)
        numbers = np.arange(ends[-1]) if order is None else order.numpy()
        places = np.full(rows, -1)
        places[numbers] = taken
        absent = None if ends[-1] == rows else torch.from_numpy(np.flatnonzero(places < 0))
        empty, idle = np.flatnonzero(~used), np.flatnonzero(np.repeat(counts == 0, len(within)))
        arrays = (numbers[sources], np.maximum(places, 0), empty, idle)
        in_places, found, of_empty, of_idle = (torch.from_numpy(array) for array in arrays)
        return cls(counts.tolist(), in_places, found, of_empty, of_idle, absent)

    def gathered(self, x: Tensor) -> Tensor:
        """The rows of x [M, K] in their places, and zeros in those of groups without a row: [groups, width, K]."""
        placed = x.index_select(0, self.order)
        if len(self.idle):
            placed.index_fill_(0, self.idle, 0.0)
        return placed.view(len(self.counts), -1, x.shape[1])

    def cleared(self, placed: Tensor) -> Tensor:
        """[groups, width, r] with zeros in empty places, in place."""
        if len(self.empty):
            placed.view(-1, placed.shape[2]).index_fill_(0, self.empty, 0.0)
        return placed

    def split(self, placed: Tensor) -> Sequence[Tensor]:
        """The rows [count, K] of each group, as views of [groups, width, K]."""
        width = placed.shape[1]
        sizes = [size for count in self.counts for size in (count, width - count)]
        return placed.view(-1, placed.shape[2]).split_with_sizes(sizes)[::2]

    def taken(self, placed: Tensor) -> Tensor:
        """The rows [M, N] of [groups, width, N], and zeros for absent ones; the inverse of `gathered`."""
        found = placed.view(-1, placed.shape[2]).index_select(0, self.places)
        return found if self.absent is None else found.index_fill_(0, self.absent, 0.0)


def counts_of(ends: list[int]) -> list[int]:
    """The number of rows of each group, by the ends of the groups."""
    return [end - start for start, end in itertools.pairwise([0, *ends])]
