"""A batch whose rows use different adapters as one autograd node: sorted once, then grouped products, or a loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optimized.dispatch.batched_node import why_not_grouped
from optimized.dispatch.padded_rows import why_not_even
from optimized.grouped_rows import GroupedRows
from optimized.matrices import as_matrix, compute_dtype, linear, overreads, unflattened
from optimized.padded_adapters import PaddedAdapters
from optimized.padded_rows import PaddedRows
from optimized.sorted_rows import SortedRows
from reference.batched import lora_batched_linear as plain_batched_linear


class BatchedLoRALinear(torch.autograd.Function):
    """(sorted rows, scales, ranks, x, index, W, b, A, B) → y, with gradients for x, b, A and B.

    Besides x and the parameters, the numbers of the sorted rows and ``S = x A_eᵀ`` are saved. The update is never
    formed for a row without an adapter, and no row is multiplied beyond its adapter's rank.
    """

    @staticmethod
    def forward(
        ctx: Any, batch: SortedRows, metadata: tuple[Tensor, Tensor | None], x: Tensor, index: Tensor, *operands: Any
    ) -> Tensor:
        weight, bias, lora_A, lora_B = operands
        x2 = as_matrix(x, weight.shape[1])
        y = linear(x2, weight, bias)
        ctx.compute = _compute(x2, lora_A, lora_B, batch)
        S, ctx.batch, ctx.grouped = None, batch, not why_not_grouped(batch, ctx.compute, lora_A, lora_B)
        ctx.places = None
        if len(batch):
            if ctx.grouped:
                ctx.places = placed(batch, x2.shape[0], len(lora_A))
                groups = _groups(ctx, lora_A, lora_B, metadata[0])
                S = groups.shrink(groups.gathered(x2))
                groups.add(y, groups.expand(S))
            else:
                rows = batch.gathered(x2, ctx.compute)
                S = lora_shrunk(batch, rows, lora_A)
                batch.add(y, lora_expanded(batch, S, lora_B, metadata[0]))
        ctx.save_for_backward(x, index, *operands, S if ctx.needs_input_grad[7] else None, *metadata)
        return y if x.dim() == 2 else unflattened(y, x.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, index, weight, bias, lora_A, lora_B, S, scale, ranks = ctx.saved_tensors
        places = {"x": 2, "bias": 5, "lora_A": 6, "lora_B": 7}
        needs = {name: bool(ctx.needs_input_grad[place]) for name, place in places.items()}
        if torch.is_grad_enabled():
            found = differentiable(needs, g, x, index, (weight, bias, lora_A, lora_B), scale, ranks)
            return None, None, found["x"], None, None, found["bias"], found["lora_A"], found["lora_B"]
        batch, compute = ctx.batch, ctx.compute
        g2 = as_matrix(g, weight.shape[0])
        dX = dA = dB = None
        if needs["x"]:
            wide = g2.dtype.itemsize == 2 and overreads(g2, weight.shape[0])
            dX = (g2.float() @ weight.float()).to(x.dtype) if wide else g2.mm(weight)
        grouped = len(batch) and ctx.grouped
        if needs["lora_A"] and not grouped:
            dA = torch.zeros_like(lora_A, memory_format=torch.contiguous_format)
        if needs["lora_B"] and not grouped:
            dB = torch.zeros_like(lora_B, memory_format=torch.contiguous_format)
        if len(batch):
            x2 = as_matrix(x, weight.shape[1]) if needs["lora_A"] else None
            if grouped:
                groups = _groups(ctx, lora_A, lora_B, scale)
                dA, dB = _grouped_gradients(groups, needs, g2, x2, S, dX)
            else:
                rows_g = batch.gathered(g2, compute)
                rows_x = None if x2 is None else batch.gathered(x2, compute)
                update = _add_gradients(batch, rows_g, rows_x, S, (lora_A, lora_B, scale.tolist()), (dX, dA, dB))
                if dX is not None and update is not None:
                    batch.add(dX, update)
        dbias = g2.sum(0) if needs["bias"] else None
        return None, None, None if dX is None else dX.view(x.shape), None, None, dbias, dA, dB


def _groups(ctx: Any, lora_A: Tensor, lora_B: Tensor, scale: Tensor) -> GroupedRows | PaddedAdapters:
    """The products of all adapters at once."""
    if ctx.places is None:
        return GroupedRows(ctx.batch, lora_A, lora_B, scale)
    return PaddedAdapters(ctx.places, lora_A, lora_B, scale)


def _grouped_gradients(
    groups: GroupedRows | PaddedAdapters,
    needs: dict[str, bool],
    g2: Tensor,
    x2: Tensor | None,
    S: Tensor | None,
    dX: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Add the update of dX, and return dA and dB, each where it is needed."""
    g, dA = groups.gathered(g2), None
    if dX is not None or x2 is not None:
        T = groups.back(g)
        if dX is not None:
            groups.add(dX, groups.update_of_dX(T))
        dA = None if x2 is None else groups.dA(T, groups.gathered(x2))
    return dA, groups.dB(g, S) if needs["lora_B"] and S is not None else None


def lora_shrunk(batch: SortedRows, rows_x: Tensor, lora_A: Tensor) -> Tensor:
    """``S = x A_eᵀ`` of the sorted rows, [R, r]; what lies beyond an adapter's rank is not written."""
    S = rows_x.new_empty(len(rows_x), lora_A.shape[1])
    for segment, (x, s) in batch.pieces(rows_x, S):
        torch.mm(x, _as(lora_A[segment.adapter, : segment.rank], x).t(), out=s[:, : segment.rank])
    return S


def lora_expanded(batch: SortedRows, S: Tensor, lora_B: Tensor, scale: Tensor) -> Tensor:
    """``scale_e · S B_eᵀ`` of the sorted rows, [R, N]."""
    update = S.new_empty(len(S), lora_B.shape[1])
    scales = scale.tolist()
    for segment, (s, out) in batch.pieces(S, update):
        B = _as(lora_B[segment.adapter, :, : segment.rank], S)
        torch.addmm(out, s[:, : segment.rank], B.t(), beta=0, alpha=scales[segment.adapter], out=out)
    return update


def _add_gradients(
    batch: SortedRows, rows_g: Tensor, rows_x: Tensor | None, S: Tensor | None, adapters: Any, gradients: Any
) -> Tensor | None:
    """Write dA and dB, and return the update of dX for the sorted rows, each where it is wanted."""
    lora_A, lora_B, scales = adapters
    dX, dA, dB = gradients
    update = None if dX is None else rows_g.new_empty(len(rows_g), lora_A.shape[2])
    for segment in batch.segments:
        chosen, rank, scale = slice(segment.first, segment.last), segment.rank, scales[segment.adapter]
        g = rows_g[chosen]
        if dX is not None or dA is not None:
            T = g.mm(_as(lora_B[segment.adapter, :, :rank], g))
        if update is not None:
            A = _as(lora_A[segment.adapter, :rank], g)
            torch.addmm(update[chosen], T, A, beta=0, alpha=scale, out=update[chosen])
        if dA is not None and rows_x is not None:
            dA[segment.adapter, :rank] = torch.mm(T.t(), rows_x[chosen]).mul_(scale)
        if dB is not None and S is not None:
            dB[segment.adapter, :, :rank] = torch.mm(g.t(), S[chosen, :rank]).mul_(scale)
    return update


def placed(batch: SortedRows, rows: int, adapters: int) -> PaddedRows | None:
    """The places of the rows for batched products; None if `why_not_even` gives a reason."""
    ends = batch.ends(adapters)
    return PaddedRows.of(batch.rows, ends, rows) if why_not_even(ends) is None else None


def _as(matrix: Tensor, like: Tensor) -> Tensor:
    return matrix if matrix.dtype == like.dtype else matrix.to(like.dtype)


def _compute(x2: Tensor, lora_A: Tensor, lora_B: Tensor, batch: SortedRows) -> torch.dtype:
    """The dtype of the adapters' products; float32 where a 16-bit product would be slower or unsafe."""
    found = compute_dtype(x2, lora_A[0], lora_B[0]) if len(lora_A) else x2.dtype
    ranks = {segment.rank for segment in batch.segments}
    rows = {segment.last - segment.first for segment in batch.segments}  # the inner dimension of dA and dB
    return torch.float32 if found.itemsize == 2 and overreads(x2, *ranks, *rows) else found


def differentiable(
    needs: dict[str, bool], g: Tensor, x: Tensor, index: Tensor, operands: Any, scale: Tensor, ranks: Tensor | None
) -> dict[str, Tensor | None]:
    """The gradients as formulas that autograd can differentiate again."""
    weight, bias, lora_A, lora_B = operands
    # aliases, because one operand may be computed from another, and that path must not count
    held = {"x": x, "bias": bias, "lora_A": lora_A, "lora_B": lora_B}
    held = {name: t.view_as(t) if t is not None and needs[name] else t for name, t in held.items()}
    y = plain_batched_linear(held["x"], index, weight, held["bias"], held["lora_A"], held["lora_B"], scale, ranks=ranks)
    asked = [name for name in held if needs[name]]
    found = torch.autograd.grad(y, [held[name] for name in asked], g, create_graph=True, allow_unused=True)
    return dict.fromkeys(held) | dict(zip(asked, found, strict=True))
