"""dB_e = scale_e · gᵀ · S and dA_e = scale_e · Tᵀ · x: sums of outer products over the rows of each group."""
# mypy: allow-incomplete-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl

from optimized.kernels.tiles import (
    INTERPRETED,
    Config,
    as_operand,
    as_stored,
    block,
    is_lean,
    launch,
    mixed_dot,
)
from optimized.row_tiles import RowTiles


@triton.jit
def grouped_weight_grad_kernel(
    order_ptr,
    ends_ptr,
    scales_ptr,
    ranks_ptr,
    g_ptr,
    s_ptr,
    out_ptr,
    N,
    R,
    stride_gm,
    stride_gn,
    stride_oe,
    stride_on,
    stride_or,
    RANKED: tl.constexpr,
    COMPUTE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One [BLOCK_N, BLOCK_R] tile of a group's sum over its rows; zeros for a group without rows."""
    e = tl.program_id(1).to(tl.int64)
    first = tl.load(ends_ptr + e - 1, mask=e > 0, other=0)
    end = tl.load(ends_ptr + e)
    rank = tl.load(ranks_ptr + e) if RANKED else R
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_r = tl.arange(0, BLOCK_R)
    inside_n = offs_n < N
    inside_r = offs_r < rank
    columns, ranks = offs_n.to(tl.int64), offs_r.to(tl.int64)
    acc = tl.full((BLOCK_N, BLOCK_R), 0, ACC)
    # Walks the group's rows; masked loads fill the tail with zeros.
    for m in range(first, end, BLOCK_M):
        offs_m = m + tl.arange(0, BLOCK_M)
        inside_m = offs_m < end
        rows = tl.load(order_ptr + offs_m, mask=inside_m, other=0)
        of_g = g_ptr + rows[None, :] * stride_gm + columns[:, None] * stride_gn
        g = tl.load(of_g, mask=inside_n[:, None] & inside_m[None, :], other=0.0)
        s = tl.load(s_ptr + rows[:, None] * R + ranks[None, :], mask=inside_m[:, None] & inside_r[None, :], other=0.0)
        g = as_operand(as_operand(g, COMPUTE), OPERAND)
        acc = tl.dot(g, as_operand(s, OPERAND), acc, input_precision=PRECISION, out_dtype=ACC)
    acc = acc * tl.load(scales_ptr + e, mask=end > first, other=0.0)
    of_out = out_ptr + e * stride_oe + columns[:, None] * stride_on + ranks[None, :] * stride_or
    tl.store(of_out, as_stored(acc, out_ptr.dtype.element_ty), mask=inside_n[:, None] & (offs_r < R)[None, :])


def grouped_weight_grad(
    g: torch.Tensor,
    s: torch.Tensor,
    tiles: RowTiles,
    scales: torch.Tensor,
    out: torch.Tensor,
    ranks: torch.Tensor | None = None,
) -> None:
    """``out_e[N, R] = scale_e · gᵀ · S`` over the rows of each group; for dA pass x, T and a transposed [E, R, K].

    Args:
        g: [M, N], any strides.   s: [M, R], contiguous, from `grouped_lora_linear`.
        scales: [E], in the dtype of s.   ranks: [E] int32, or None; columns from a group's rank on get zeros.
        out: [E, N, R], any strides, overwritten; the sum is rounded to its dtype once.

    The grid is (tiles of N, groups). A program walks over all rows of its group, so that no sum is shared and two runs
    agree bit for bit. A tile covers the whole rank, so that g is read once.
    """
    (M, N), (E, _, R) = g.shape, out.shape
    if 0 in (M, N):
        out.zero_()
        return
    config = grouped_weight_grad_config(tiles.block, N, R, g.dtype, is_lean(g, g.dtype))
    launch(
        grouped_weight_grad_kernel,
        (triton.cdiv(N, config.blocks["BLOCK_N"]), E),
        tiles.order,
        tiles.ends,
        scales,
        tiles.ends if ranks is None else ranks,
        g,
        s,
        out,
        N,
        R,
        *g.stride(),
        *out.stride(),
        config=config,
        RANKED=ranks is not None,
        **mixed_dot(g.dtype),
    )


def grouped_weight_grad_config(block_m: int, N: int, R: int, compute: torch.dtype, lean: bool) -> Config:
    """Block sizes by shape; `block_m` is the number of rows of a tile, which says how many rows a group has."""
    if INTERPRETED:
        blocks = {"BLOCK_M": block_m, "BLOCK_N": block(N, 16, 64, 128), "BLOCK_R": block(R, 16, 64)}
        return Config(blocks, num_warps=1, num_stages=1)
    block_r = block(R, 16, 32)
    if compute == torch.float32:
        return Config({"BLOCK_M": block_m, "BLOCK_N": 32, "BLOCK_R": block_r}, num_warps=4, num_stages=2)
    wide = {"BLOCK_M": min(block_m, 64), "BLOCK_N": 128, "BLOCK_R": block_r}
    if compute == torch.float16 or lean:
        return Config({**wide, "BLOCK_M": min(block_m, 32), "BLOCK_N": 64}, num_warps=4, num_stages=2)
    return Config(wide, num_warps=4, num_stages=3)
