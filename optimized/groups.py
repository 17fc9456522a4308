"""Rows sorted by expert, and the products of each expert's rows with its own matrix."""

from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from optimized.dispatch.grouped_mm import why_not_grouped
from optimized.matrices import add_product, overreads


class Groups(NamedTuple):
    """The rows of each expert.

    Attributes:
        order: the numbers of the present rows [P], sorted by expert; None if they are the first P rows, sorted.
        offsets: [E], int32: the end of each expert's rows among the sorted ones.
        ends: the same numbers in Python.
    """

    order: Tensor | None
    offsets: Tensor
    ends: list[int]

    @classmethod
    def of_index(cls, index: Tensor, experts: int) -> Self:
        """The groups of rows with these experts [M]; rows whose index is out of range are left out."""
        if index.is_cpu:  # numpy, because its fixed costs are a third of torch's
            chosen = index.numpy()
            chosen = np.where((chosen < 0) | (chosen >= experts), experts, chosen)
            found = np.bincount(chosen, minlength=experts + 1)[:experts].cumsum()
            sorted_rows = np.argsort(chosen.astype(np.uint8) if experts < 255 else chosen, kind="stable")
            present = torch.from_numpy(sorted_rows[: found[-1]])
            return cls(present, torch.from_numpy(found.astype(np.int32)), found.tolist())
        key = torch.where((index < 0) | (index >= experts), experts, index)
        offsets = torch.bincount(key, minlength=experts + 1)[:experts].cumsum(0)
        ends = offsets.tolist()
        order = torch.argsort(key.to(torch.uint8) if experts < 255 else key, stable=True)
        return cls(order[: ends[-1]], offsets.to(torch.int32), ends)

    @classmethod
    def of_offsets(cls, offsets: Tensor) -> Self:
        """The groups of sorted rows with these ends."""
        return cls(None, offsets.to(torch.int32), offsets.tolist())

    @property
    def rows(self) -> int:
        """P, the number of present rows."""
        return self.ends[-1]

    def busy(self) -> Iterator[tuple[int, slice]]:
        """Each expert that has rows, with their slice among the sorted ones."""
        start = 0
        for e, end in enumerate(self.ends):
            if end > start:
                yield e, slice(start, end)
            start = end

    def repeated(self, of_experts: Tensor) -> Tensor:
        """The row [N] of its expert for each sorted row: [P, N]."""
        counts = self.offsets.diff(prepend=self.offsets.new_zeros(1))
        return of_experts.repeat_interleave(counts.long(), 0, output_size=self.rows)

    def gathered(self, x: Tensor) -> Tensor:
        """The present rows of x [M, K], sorted: [P, K]."""
        if self.order is None:
            return x[: self.rows]
        return x.index_select(0, self.order)

    def scattered(self, sorted_rows: Tensor, count: int) -> Tensor:
        """The rows in their places among `count`, and zeros in the others; the inverse of `gathered`."""
        if self.order is None and self.rows == count:
            return sorted_rows
        whole = sorted_rows.new_empty(count, sorted_rows.shape[1])
        if self.order is None:
            whole[: self.rows] = sorted_rows
            whole[self.rows :] = 0
            return whole
        if self.rows < count:
            whole.zero_()
        return whole.index_copy_(0, self.order, sorted_rows)


def grouped_product(x: Tensor, w: Tensor, groups: Groups) -> Tensor:
    """``x_e w_e`` for sorted rows x [P, K] and w [E, K, N], rounded once: [P, N]."""
    if why_not_grouped(x, w) is None:
        return F.grouped_mm(x, w, offs=groups.offsets)
    y = x.new_empty(x.shape[0], w.shape[2])
    wide = x.dtype.itemsize == 2 and overreads(x, *w.shape[1:])
    for e, own in groups.busy():
        y[own] = x[own].float() @ w[e].float() if wide else x[own] @ w[e]
    return y


def add_grouped(y: Tensor, s: Tensor, b: Tensor, scale: float, groups: Groups, mask: Tensor | None = None) -> None:
    """``y_e += scale · mask ⊙ (s_e b_e)`` in place for b [E, r, N]; s and b may be wider than y.

    On a CPU a product for each expert, summed in place, takes less time than a grouped product and a sum.
    """
    for e, own in groups.busy():
        add_product(y[own], s[own], b[e], scale, None if mask is None else mask[own])


def grouped_shrink(x: Tensor, a: Tensor, groups: Groups) -> Tensor:
    """``x_e a_e`` for a narrow a [E, K, r]: [P, r]."""
    s = x.new_empty(x.shape[0], a.shape[2])
    for e, own in groups.busy():
        torch.mm(x[own], a[e], out=s[own])
    return s


def grouped_outer(left: Tensor, right: Tensor, scale: float, groups: Groups, like: Tensor) -> Tensor:
    """``scale · left_eᵀ right_e`` over each expert's rows, in the dtype of `like`: [E, r, K], 0 for idle experts."""
    found = torch.empty(len(groups.ends), left.shape[1], right.shape[1], dtype=like.dtype, device=like.device)
    busy = dict(groups.busy())
    for e, out in enumerate(found):
        own = busy.get(e)
        if own is None:
            out.zero_()
        elif like.dtype == left.dtype:
            torch.addmm(out, left[own].t(), right[own], beta=0, alpha=scale, out=out)
        else:
            out.copy_((left[own].t() @ right[own]).mul_(scale))
    return found
