"""Right implementations that differ in the order in which products are summed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.baselines.linear import BackwardOperands, Right, UpdateOperands

Product = Callable[[Tensor, Tensor], Tensor]


def split(parts: int) -> Product:
    """a bᵀ as split K: float32 partial sums of `parts` parts, added in order."""
    return functools.partial(_split, parts=parts)


def _split(a: Tensor, b: Tensor, parts: int) -> Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)
    total = torch.zeros(a.shape[0], b.shape[0], dtype=wide)
    for left, right in zip(a.chunk(parts, 1), b.chunk(parts, 1), strict=True):
        total += left.to(wide) @ right.to(wide).T
    return total.to(a.dtype)


def reversed_order(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ summed from the last product to the first."""
    return a.flip(1) @ b.flip(1).T


def pairwise(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ by recursive halving of the reduction."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return _halved(a.to(wide), b.to(wide)).to(a.dtype)


def _halved(a: Tensor, b: Tensor) -> Tensor:
    if a.shape[1] <= 8:
        return a @ b.T
    half = a.shape[1] // 2
    return _halved(a[:, :half], b[:, :half]) + _halved(a[:, half:], b[:, half:])


def doubled(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ in float64, rounded once."""
    return (a.double() @ b.double().T).to(a.dtype)


def by_einsum(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ by einsum."""
    return torch.einsum("mk,nk->mn", a, b).clone()  # a custom autograd function must not return a view


def by_bmm(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ by bmm, as a batch of one."""
    return torch.bmm(a[None], b.T[None])[0].clone()


def by_vmap(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ by vmap over rows."""
    return torch.vmap(lambda row: b @ row)(a).clone() if len(a) else a @ b.T


def transposed(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ as the transpose of b aᵀ."""
    return (b @ a.T).T.contiguous()


def padded(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ with every size zero-padded to a multiple of 16, as kernels with masked tiles compute it."""
    (m, k), n = a.shape, b.shape[0]
    wide_a, wide_b = (torch.nn.functional.pad(t, (0, -k % 16, 0, -len(t) % 16)) for t in (a, b))
    return (wide_a @ wide_b.T)[:m, :n].clone()


def tiled(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ in tiles of 32 rows and 16 columns, summed over blocks of 64 in K."""
    wide = torch.promote_types(a.dtype, torch.float32)
    out = torch.zeros(len(a), len(b), dtype=wide)
    for i in range(0, len(a), 32):
        for j in range(0, len(b), 16):
            for k in range(0, a.shape[1], 64):
                out[i : i + 32, j : j + 16] += a[i : i + 32, k : k + 64].to(wide) @ b[j : j + 16, k : k + 64].to(wide).T
    return out.to(a.dtype)


def shuffled(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ with its products in a fixed random order."""
    order = torch.randperm(a.shape[1], generator=torch.Generator().manual_seed(0))
    return a[:, order] @ b[:, order].T


def interleaved(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ as eight sums of every eighth product."""
    wide = torch.promote_types(a.dtype, torch.float32)
    parts = [a[:, i::8].to(wide) @ b[:, i::8].to(wide).T for i in range(8)]
    return torch.stack(parts).sum(0).to(a.dtype)


def by_broadcast(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ as broadcast products summed by `sum`, 64 rows at a time."""
    wide = torch.promote_types(a.dtype, torch.float32)
    rows = [(part.to(wide)[:, None] * b.to(wide)).sum(-1) for part in a.split(64)]
    return torch.cat(rows).to(a.dtype) if rows else a @ b.T


class ProductsBy(Right):
    """Every product uses the given method of summation."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.product = product

    def base(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        y = self.product(x, weight)
        return y if bias is None else y + bias

    def update(self, o: UpdateOperands) -> Tensor:
        return self.product(self.product(o.x, o.lora_A) * o.scale, o.lora_B)

    def back_through_base(self, g: Tensor, weight: Tensor) -> Tensor:
        return self.product(g, weight.T)

    def back_through_update(self, o: BackwardOperands) -> Tensor:
        return self.product(self.product(o.g_adapter, o.lora_B.T), o.lora_A.T) * o.scale

    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return self.product(self.product(o.g_adapter, o.lora_B.T).T, o.x.T) * o.scale

    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return self.product(o.g_adapter.T, self.product(o.x, o.lora_A).T) * o.scale
