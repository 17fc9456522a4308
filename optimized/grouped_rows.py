"""The products of a batch's sorted rows with their own adapters, all at once, by torch's grouped product."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from optimized.sorted_rows import SortedRows


@dataclass(frozen=True)
class GroupedRows:
    """Sorted rows and the adapters lora_A [L, r, K] and lora_B [L, N, r], all of rank r."""

    batch: SortedRows
    lora_A: Tensor
    lora_B: Tensor
    scale: Tensor

    @cached_property
    def counts(self) -> Tensor:
        """[L], the number of rows of each adapter."""
        found = [0] * len(self.lora_A)
        for segment in self.batch.segments:
            found[segment.adapter] = segment.last - segment.first
        return torch.tensor(found)

    @cached_property
    def ends(self) -> Tensor:
        """[L], the end of each adapter's rows; equal ends for an adapter without rows."""
        return self.counts.cumsum(0).to(torch.int32)

    @cached_property
    def scales(self) -> Tensor:
        """[R, 1], the scale of each row."""
        return self.scale.to(self.lora_A.dtype).repeat_interleave(self.counts)[:, None]

    def gathered(self, matrix: Tensor) -> Tensor:
        """The sorted rows of a matrix [M, P], packed."""
        return self.batch.gathered(matrix, self.lora_A.dtype).contiguous()

    def add(self, matrix: Tensor, update: Tensor) -> None:
        """Add an update of the sorted rows to a matrix in place."""
        self.batch.add(matrix, update)

    def shrink(self, x: Tensor) -> Tensor:
        """``S = x A_eᵀ``, [R, r]."""
        return F.grouped_mm(x, self.lora_A.transpose(1, 2), offs=self.ends)

    def expand(self, S: Tensor) -> Tensor:
        """``scale_e · S B_eᵀ``, [R, N]."""
        return F.grouped_mm(S * self.scales, self.lora_B.transpose(1, 2), offs=self.ends)

    def back(self, g: Tensor) -> Tensor:
        """``T = scale_e · g B_e``, [R, r]."""
        return F.grouped_mm(g, self.lora_B, offs=self.ends).mul_(self.scales)

    def update_of_dX(self, T: Tensor) -> Tensor:
        """``T A_e``, [R, K]."""
        return F.grouped_mm(T, self.lora_A, offs=self.ends)

    def dA(self, T: Tensor, x: Tensor) -> Tensor:
        """``Tᵀ x`` over the rows of each adapter, [L, r, K]; zeros for one without rows."""
        return F.grouped_mm(T.t(), x, offs=self.ends)

    def dB(self, g: Tensor, S: Tensor) -> Tensor:
        """``scale_e · gᵀ S`` over the rows of each adapter, [L, N, r]; zeros for one without rows."""
        return F.grouped_mm(g.t(), S * self.scales, offs=self.ends)
