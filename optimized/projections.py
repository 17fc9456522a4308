"""Several LoRA projections of one x, outside autograd: one pass over x for all lora_A, and one for all dA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from optimized.matrices import (
    add_product,
    as_dtype,
    autocast_as,
    changeable,
    few_for_16_bits,
    linear,
    overreads,
)


class Operands(NamedTuple):
    """One projection ``t ↦ t Wᵀ + b + scale · (t Aᵀ) Bᵀ``; without an adapter A and B have rank 0."""

    weight: Tensor
    bias: Tensor | None
    lora_A: Tensor
    lora_B: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    def autocast_as(self, dtype: torch.dtype | None) -> Operands:
        """The projection with its operands in autocast's dtype."""
        weight, bias, lora_A, lora_B = autocast_as(dtype, *self[:4])
        return Operands(weight, bias, lora_A, lora_B, self.scale)


class Needs(NamedTuple):
    """The wanted gradients of one projection; a gradient of the weight is never wanted."""

    weight: bool
    bias: bool
    lora_A: bool
    lora_B: bool


def forward(x: Tensor, projections: Sequence[Operands]) -> tuple[list[Tensor], Tensor | None]:
    """Each projection's y [M, N] of x [M, K], and ``S = x [A_1; A_2; …]ᵀ`` [M, Σr], or None without adapters."""
    S = middle(x, projections)
    ys = [changeable(linear(x, p.weight, p.bias)) for p in projections]
    for y, s, p in zip(ys, _parts(S, projections), projections, strict=True):
        if s is not None:
            wide_s, B = as_dtype(_compute(y, p.lora_B, p.rank), s, p.lora_B)
            add_product(y, wide_s, B.t(), p.scale)
    return ys, S


def middle(x: Tensor, projections: Sequence[Operands]) -> Tensor | None:
    """``S = x [A_1; A_2; …]ᵀ`` [M, Σr], or None without adapters."""
    A = _stacked(projections)
    if A is None:
        return None
    wide_x, A = as_dtype(_compute(x, A, A.shape[1]), x, A)
    S: Tensor = wide_x @ A.t()
    return S


def back_through(
    gs: Sequence[Tensor | None], projections: Sequence[Operands], *, needs_x: bool
) -> tuple[Tensor | None, Tensor | None]:
    """``dX = Σ g W + T [A_1; A_2; …]`` [M, K] and ``T = [scale_1 · g_1 B_1, …]`` [M, Σr], without missing g.

    Args:
        gs: the gradient of each projection's y [M, N], or None.
    """
    active = [(g, p) for g, p in zip(gs, projections, strict=True) if g is not None]
    parts = []
    for g, p in active:
        if p.rank:
            wide_g, B = as_dtype(_compute(g, p.lora_B, *p.lora_B.shape), g, p.lora_B)
            parts.append((wide_g @ B).mul_(p.scale))
    T = _joined(parts)
    if not needs_x or not active:
        return None, T
    (first, p), *others = active
    dX = linear(first, p.weight.t())
    for g, p in others:
        if g.dtype.itemsize == 2 and overreads(g, g.shape[1]):
            dX += linear(g, p.weight.t())
        else:
            dX.addmm_(g, p.weight)
    A = _stacked([p for _, p in active])
    if T is not None and A is not None:
        # 16 bits may be unsafe with the sum of the ranks though safe with each rank
        apart = dX.dtype.itemsize == 2 and overreads(dX, len(A))
        factors = [p.lora_A for _, p in active if p.rank] if apart else [A]
        for t, factor in zip(parts if apart else [T], factors, strict=True):
            wide_t, wide_A = as_dtype(_compute(dX, factor, *factor.shape), t, factor)
            add_product(dX, wide_t, wide_A, 1.0)
    return dX, T


def of_operands(
    gs: Sequence[Tensor | None],
    x: Tensor | None,
    S: Tensor | None,
    T: Tensor | None,
    projections: Sequence[Operands],
    needs: Sequence[Needs],
    like: Sequence[Operands],
) -> list[Tensor | None]:
    """dW (always None), dbias, dA and dB of each projection, in the dtypes of `like`; None if not wanted.

    Args:
        x: [M, K], for dA; S: from `forward`, for dB; T: from `back_through`, for dA.
    """
    active = [p for g, p in zip(gs, projections, strict=True) if g is not None]
    d_As = iter(_parts(_outer(T, x), active, dim=0)) if any(n.lora_A for n in needs) else None
    found: list[Tensor | None] = []
    for g, s, p, need, original in zip(gs, _parts(S, projections), projections, needs, like, strict=True):
        if g is None:
            found += [None] * 4
            continue
        d_bias = g.sum(0, dtype=original.bias.dtype) if need.bias and original.bias is not None else None
        d_A = next(d_As) if d_As is not None else None
        d_B = _outer(s, g, p.scale) if need.lora_B else None
        d_A = None if d_A is None or not need.lora_A else d_A.to(original.lora_A.dtype)
        found += [None, d_bias, d_A, None if d_B is None else d_B.t().to(original.lora_B.dtype)]
    return found


def _outer(left: Tensor | None, right: Tensor | None, scale: float = 1.0) -> Tensor | None:
    """``scale · leftᵀ right`` [P, Q] over the tokens, with the narrow operand on the left."""
    if left is None or right is None:
        return None
    wide_left, wide_right = as_dtype(_compute(right, left, len(right)), left, right)
    product: Tensor = wide_left.t() @ wide_right
    return product if scale == 1.0 else product.mul_(scale)


def _compute(t: Tensor, factor: Tensor, *inner: int) -> torch.dtype:
    """The wider dtype; on a CPU float32 if 16 bits are slower, because t is small, or unsafe."""
    wider = torch.promote_types(t.dtype, factor.dtype)
    return torch.float32 if wider.itemsize == 2 and (few_for_16_bits(t) or overreads(t, *inner)) else wider


def _stacked(projections: Sequence[Operands]) -> Tensor | None:
    """[A_1; A_2; …] of the projections with an adapter."""
    return _joined([p.lora_A for p in projections if p.rank], dim=0)


def _joined(parts: list[Tensor], dim: int = 1) -> Tensor | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    widest = parts[0].dtype
    for part in parts[1:]:
        widest = torch.promote_types(widest, part.dtype)
    return torch.cat(as_dtype(widest, *parts), dim)


def _parts(joined: Tensor | None, projections: Sequence[Operands], dim: int = 1) -> list[Tensor | None]:
    """Split the result of `_joined` into the projections' parts; None for a projection without an adapter."""
    if joined is None:
        return [None] * len(projections)
    parts = torch.split(joined, [p.rank for p in projections], dim)
    return [part if p.rank else None for part, p in zip(parts, projections, strict=True)]
