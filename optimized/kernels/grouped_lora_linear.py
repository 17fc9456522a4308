"""y = x · W_eᵀ + b_e + scale_e · S · B_eᵀ with S = x · A_eᵀ, for rows that choose e; with g for x, dX and T."""
# mypy: allow-incomplete-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl

from optimized.kernels.tiles import (
    INTERPRETED,
    Config,
    accumulator,
    as_operand,
    as_stored,
    block,
    is_lean,
    launch,
    mixed_dot,
)
from optimized.row_tiles import RowTiles


@triton.jit
def grouped_lora_linear_kernel(
    order_ptr,
    groups_ptr,
    firsts_ptr,
    ends_ptr,
    scales_ptr,
    ranks_ptr,
    x_ptr,
    w_ptr,
    bias_ptr,
    a_ptr,
    b_ptr,
    y_ptr,
    s_ptr,
    GROUPS,
    N,
    K,
    R,
    stride_xm,
    stride_xk,
    stride_we,
    stride_wn,
    stride_wk,
    stride_ce,
    stride_cn,
    stride_ae,
    stride_ar,
    stride_ak,
    stride_be,
    stride_bn,
    stride_br,
    HAS_BASE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RANKED: tl.constexpr,
    BASE_ALONE: tl.constexpr,
    COMPUTE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One [BLOCK_M, BLOCK_N] tile of y, of rows of one group; the tiles of the first columns also write S.

    The rows without a group are those of group GROUPS: they are zeros, or with BASE_ALONE the base of group 0.
    """
    group = tl.load(groups_ptr + tl.program_id(0))
    if (group < 0) | (group > GROUPS):
        return  # the table has more tiles than rows may need
    offs_m = tl.load(firsts_ptr + tl.program_id(0)) + tl.arange(0, BLOCK_M)
    inside_m = offs_m < tl.load(ends_ptr + group)
    rows = tl.load(order_ptr + offs_m, mask=inside_m, other=0)
    present = group < GROUPS
    e = tl.where(present, group, 0).to(tl.int64)
    rank = tl.where(present, tl.load(ranks_ptr + e) if RANKED else R, 0)
    scale = tl.load(scales_ptr + e, mask=present, other=0.0)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_r = tl.arange(0, BLOCK_R)
    inside_n = offs_n < N
    inside_r = offs_r < rank
    columns, ranks = offs_n.to(tl.int64), offs_r.to(tl.int64)
    x_rows = x_ptr + rows[:, None] * stride_xm
    a_rows = a_ptr + e * stride_ae + ranks[None, :] * stride_ar
    w_rows = w_ptr + e * stride_we + columns[None, :] * stride_wn
    acc = tl.full((BLOCK_M, BLOCK_N), 0, ACC)
    s = tl.full((BLOCK_M, BLOCK_R), 0, ACC)
    # Walks K, not at all for zeros; masked loads fill its tail with zeros.
    for k in range(0, K if BASE_ALONE else tl.where(present, K, 0), BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        inside_k = offs_k < K
        offs_k = offs_k.to(tl.int64)
        x = tl.load(x_rows + offs_k[None, :] * stride_xk, mask=inside_m[:, None] & inside_k[None, :], other=0.0)
        a = tl.load(a_rows + offs_k[:, None] * stride_ak, mask=inside_k[:, None] & inside_r[None, :], other=0.0)
        x = as_operand(x, COMPUTE)
        s = tl.dot(x, as_operand(a, COMPUTE), s, input_precision="ieee", out_dtype=ACC)
        if HAS_BASE:
            w = tl.load(w_rows + offs_k[:, None] * stride_wk, mask=inside_k[:, None] & inside_n[None, :], other=0.0)
            acc = tl.dot(x, as_operand(w, COMPUTE), acc, input_precision="ieee", out_dtype=ACC)
    s = tl.where(inside_r[None, :], s, 0.0)  # inf in x times a masked 0 would be NaN
    if tl.program_id(1) == 0:
        tl.store(s_ptr + rows[:, None] * R + ranks[None, :], s, mask=inside_m[:, None] & (offs_r < R)[None, :])
    of_b = b_ptr + e * stride_be + columns[None, :] * stride_bn + ranks[:, None] * stride_br
    b = as_operand(tl.load(of_b, mask=inside_r[:, None] & inside_n[None, :], other=0.0), COMPUTE)
    update = tl.dot(as_operand(s, OPERAND), as_operand(b, OPERAND), input_precision=PRECISION, out_dtype=ACC)
    if HAS_BIAS:
        of_bias = bias_ptr + e * stride_ce + columns * stride_cn
        biased = inside_n if BASE_ALONE else inside_n & present
        acc += as_operand(tl.load(of_bias, mask=biased, other=0.0), ACC)[None, :]
    acc += update * scale
    of_y = y_ptr + rows[:, None] * N + columns[None, :]
    tl.store(of_y, as_stored(acc, y_ptr.dtype.element_ty), mask=inside_m[:, None] & inside_n[None, :])


def grouped_lora_linear(
    x: torch.Tensor,
    tiles: RowTiles,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    lora_A: torch.Tensor,
    lora_B: torch.Tensor,
    scales: torch.Tensor,
    ranks: torch.Tensor | None = None,
    base_alone: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``y[M, N]`` in the dtype of x, rounded once, and ``S[M, R]`` in float32 (float64 for float64).

    Args:
        x: [M, K].   weight: [E, N, K], or None.   bias: [E, N], or None.   lora_A: [E, R, K].   lora_B: [E, N, R], R at
            most `MOST_TILED_RANK`.   All of one dtype, any strides; a stride of 0 shares a weight among all groups.
        tiles: of `grouped_lora_linear_config`'s BLOCK_M rows.
        scales: [E], in the dtype of S.   ranks: [E] int32: what lies beyond a group's rank is not read.
        base_alone: whether rows without a group get the base of group 0; else they are not read, and are zeros in y
            and not written in S.

    The grid is (tiles of rows, tiles of N). Each program computes S of its rows, which costs BLOCK_R/BLOCK_N of the
    base product but no reading of x from memory, since S needs the tiles of x that the base has loaded.
    """
    (M, K), (E, N, R) = x.shape, lora_B.shape
    y, s = x.new_empty(M, N), torch.empty(M, R, dtype=accumulator(x.dtype), device=x.device)
    if 0 in (M, N):
        return y, s
    lean = any(t is not None and is_lean(t, x.dtype) for t in (x, None if weight is None else weight[0]))
    config = grouped_lora_linear_config(tiles.block, N, K, R, x.dtype, lean)
    base, added = lora_B if weight is None else weight, lora_B if bias is None else bias
    grid = len(tiles.groups), triton.cdiv(N, config.blocks["BLOCK_N"])
    of_groups = (tiles.groups, tiles.firsts, tiles.ends, scales, tiles.ends if ranks is None else ranks)
    strides = (*x.stride(), *base.stride(), *added.stride()[:2], *lora_A.stride(), *lora_B.stride())
    launch(
        grouped_lora_linear_kernel,
        grid,
        tiles.order,
        *of_groups,
        *(x, base, added, lora_A, lora_B, y, s),
        *(E, N, K, R),
        *strides,
        config=config,
        HAS_BASE=weight is not None,
        HAS_BIAS=bias is not None,
        RANKED=ranks is not None,
        BASE_ALONE=base_alone,
        **mixed_dot(x.dtype),
    )
    return y, s


def tile_rows(M: int, E: int, compute: torch.dtype) -> int:
    """BLOCK_M for M rows among E groups: a group that has the average number of rows fills its tiles."""
    average = -(-M // max(E, 1))
    if INTERPRETED:
        return block(average, 16, 32, 64)
    return 16 if compute == torch.float32 else block(average, 16, 64, 128)  # 32 rows of float32 would spill


def grouped_lora_linear_config(BLOCK_M: int, N: int, K: int, R: int, compute: torch.dtype, lean: bool) -> Config:
    """The other block sizes by shape: a tile holds the sums of y, of S and of the update at the same time."""
    if INTERPRETED:
        blocks = {"BLOCK_N": block(N, 16, 64, 128), "BLOCK_K": block(K, 16, 64, 128), "BLOCK_R": block(R, 16, 64)}
        return Config({"BLOCK_M": BLOCK_M, **blocks}, num_warps=1, num_stages=1)
    block_r, warps = block(R, 16, 32), 8 if BLOCK_M >= 64 else 4
    if compute == torch.float32:
        return Config(_blocks(BLOCK_M, 32, 16, block_r), num_warps=4, num_stages=2)
    if lean:
        return Config(_blocks(BLOCK_M, 32, 32, block_r), num_warps=warps, num_stages=2)
    if compute == torch.float16:
        return Config(_blocks(BLOCK_M, 64, 32, block_r), num_warps=8 if BLOCK_M == 128 else 4, num_stages=2)
    if BLOCK_M == 128 and R > 16:
        return Config(_blocks(BLOCK_M, 64, 32, block_r), num_warps=warps, num_stages=3)
    return Config(_blocks(BLOCK_M, 128, 64, block_r), num_warps=warps, num_stages=3)


def _blocks(m: int, n: int, k: int, r: int) -> dict[str, int]:
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "BLOCK_R": r}
