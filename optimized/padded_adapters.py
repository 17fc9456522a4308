"""Products of a batch's rows with their adapters, padded to equally many rows an adapter, as batched products."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from optimized.padded_rows import PaddedRows


@dataclass(frozen=True)
class PaddedAdapters:
    """The places of rows, and the adapters lora_A [L, r, K] and lora_B [L, N, r], all of rank r.

    Results for rows are [L, width, ·], with any values in empty places unless they are said to be zero.
    """

    rows: PaddedRows
    lora_A: Tensor
    lora_B: Tensor
    scale: Tensor

    @cached_property
    def scales(self) -> Tensor:
        """[L, 1, 1], the scale of each adapter."""
        return self.scale.to(self.lora_A.dtype)[:, None, None]

    def gathered(self, matrix: Tensor) -> Tensor:
        """The rows of a matrix [M, P] in their places, in the adapters' dtype; zeros in empty ones."""
        return self.rows.gathered(matrix.to(self.lora_A.dtype))

    def add(self, matrix: Tensor, update: Tensor) -> None:
        """Add an update of the rows to a matrix in place."""
        matrix.add_(self.rows.taken(update))

    def shrink(self, x: Tensor) -> Tensor:
        """``S = x A_eᵀ``; zeros in empty places."""
        return self.rows.cleared(torch.bmm(x, self.lora_A.mT))

    def expand(self, S: Tensor) -> Tensor:
        """``scale_e · S B_eᵀ``."""
        return torch.bmm(S * self.scales, self.lora_B.mT)

    def back(self, g: Tensor) -> Tensor:
        """``T = scale_e · g B_e``; zeros in empty places, also where an idle adapter holds NaN."""
        return self.rows.cleared(torch.bmm(g, self.lora_B).mul_(self.scales))

    def update_of_dX(self, T: Tensor) -> Tensor:
        """``T A_e``."""
        return torch.bmm(T, self.lora_A)

    def dA(self, T: Tensor, x: Tensor) -> Tensor:
        """``Tᵀ x`` over the rows of each adapter, [L, r, K]; zeros for one without rows."""
        return torch.bmm(T.mT, x)

    def dB(self, g: Tensor, S: Tensor) -> Tensor:
        """``scale_e · gᵀ S`` over the rows of each adapter, [L, N, r]; zeros for one without rows."""
        return torch.bmm(self.rows.cleared(S * self.scales).mT, g).mT
