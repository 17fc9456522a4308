"""Right but different layers for batches whose rows use different adapters: gathered, sorted, one-hot, merged."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import reference
from reference.batch_checks import check_batch
from tests.baselines.batched import Right


class Eager:
    """The base in x's dtype, and a subclass's update of every row, [M, N]."""

    def lora_batched_linear(
        self,
        x: Tensor,
        index: Tensor,
        weight: Tensor,
        bias: Any,
        A: Tensor,
        B: Tensor,
        scale: Tensor,
        *,
        ranks: Any = None,
    ) -> Tensor:
        check_batch(x, index, weight, bias, A, B, scale, ranks)
        base = F.linear(x, weight.detach(), bias)
        if ranks is not None:
            inside = torch.arange(A.shape[1]) < ranks[:, None]
            A, B = A.where(inside[:, :, None], 0), B.where(inside[:, None, :], 0)
        rows = x.reshape(index.numel(), x.shape[-1]).to(A.dtype)
        update = self.update(rows, index.reshape(-1), A, B, scale.to(A.dtype))
        return base + update.reshape(base.shape).to(base.dtype)

    def update(self, x: Tensor, index: Tensor, A: Tensor, B: Tensor, scale: Tensor) -> Tensor:
        raise NotImplementedError


class Gathered(Eager):
    """Adapters gathered for each row, and batched products."""

    def update(self, x: Tensor, index: Tensor, A: Tensor, B: Tensor, scale: Tensor) -> Tensor:
        own, used = index.clamp(min=0), (index >= 0)[:, None]
        S = torch.bmm(A[own], x[:, :, None])
        return (torch.bmm(B[own], S)[:, :, 0] * scale[own][:, None]).where(used, 0)


class OneHot(Eager):
    """S for all adapters at once, and the others' part of it set to zero."""

    def update(self, x: Tensor, index: Tensor, A: Tensor, B: Tensor, scale: Tensor) -> Tensor:
        L, r, K = A.shape
        own = (index[:, None] == torch.arange(L))[:, :, None]
        S = (x @ A.reshape(L * r, K).T).reshape(-1, L, r).where(own, 0)
        scaled = (B * scale.where(own.any(0)[:, 0], 0)[:, None, None]).where(own.any(0)[:, :, None], 0)
        return S.reshape(-1, L * r) @ scaled.transpose(1, 2).reshape(L * r, -1)


class Merged(Eager):
    """The update of each adapter merged into one matrix."""

    def update(self, x: Tensor, index: Tensor, A: Tensor, B: Tensor, scale: Tensor) -> Tensor:
        merged = torch.einsum("lnr,lrk,l->lnk", B, A, scale)
        own = index.clamp(min=0)
        return torch.bmm(merged[own], x[:, :, None])[:, :, 0].where((index >= 0)[:, None], 0)


class SortedSegments(Eager):
    """Rows sorted by adapter, the halves of the reference, and rows put back in their order."""

    def update(self, x: Tensor, index: Tensor, A: Tensor, B: Tensor, scale: Tensor) -> Tensor:
        order = index.argsort(stable=True)
        counts = torch.bincount(index + 1, minlength=len(A) + 1)
        segments = (counts.cumsum(0), torch.arange(-1, len(A)))  # an empty segment for each idle adapter
        S = reference.lora_shrink(x[order], A, *segments)
        y = reference.lora_expand(S, x.new_zeros(len(x), B.shape[1]), B, scale, *segments)
        return y[order.argsort()]


class Grouped(Eager):
    """torch's grouped product over sorted rows; float32, widths of multiples of 4."""

    def update(self, x: Tensor, index: Tensor, A: Tensor, B: Tensor, scale: Tensor) -> Tensor:
        order = index.argsort(stable=True)
        chosen = order[index[order] >= 0]
        ends = torch.bincount(index[chosen], minlength=len(A)).cumsum(0).to(torch.int32)
        K, r, N = A.shape[2], A.shape[1], B.shape[1]
        a, b = F.pad(A, (0, -K % 4, 0, -r % 4)), F.pad(B, (0, -r % 4, 0, -N % 4))
        S = F.grouped_mm(F.pad(x[chosen], (0, -K % 4)), a.transpose(1, 2), offs=ends)
        found = F.grouped_mm(S, b.transpose(1, 2), offs=ends)[:, :N] * scale[index[chosen]][:, None]
        return x.new_zeros(len(x), N).index_add(0, chosen, found)


VARIANTS = {
    "right": Right(),
    "gathered": Gathered(),
    "sorted": SortedSegments(),
    "one-hot": OneHot(),
    "merged": Merged(),
}
