"""dB = scale · gᵀ · S and dA = scale · Tᵀ · x: sums of outer products over the tokens."""
# mypy: allow-incomplete-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl

from optimized.kernels.dropout_mask import NONE_DROPPED, is_kept
from optimized.kernels.split_k_reduce import split_k_reduce
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
    splits_of,
)
from optimized.philox import Kept


@triton.jit(do_not_specialize=["M", "seed", "limit"])
def weight_grad_kernel(
    g_ptr,
    s_ptr,
    out_ptr,
    scale: tl.float64,
    seed: tl.int64,
    limit: tl.int32,
    M,
    N,
    R,
    M_OF_SPLIT,
    stride_gm,
    stride_gn,
    stride_sm,
    stride_sr,
    stride_op,
    stride_on,
    stride_or,
    COMPUTE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    DROPPED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One [BLOCK_N, BLOCK_R] tile of the sum over the M_OF_SPLIT tokens of this split."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    m_from = split * M_OF_SPLIT
    m_to = tl.minimum(m_from + M_OF_SPLIT, M)
    inside_n = offs_n < N
    inside_r = offs_r < R
    g_columns = g_ptr + offs_n.to(tl.int64)[:, None] * stride_gn
    s_columns = s_ptr + offs_r.to(tl.int64)[None, :] * stride_sr
    acc = tl.full((BLOCK_N, BLOCK_R), 0, ACC)
    # Walks M; masked loads fill its tail with zeros. Splits end at whole blocks, so that only M itself has a tail.
    for m in range(m_from, m_to, BLOCK_M):
        offs_m = m + tl.arange(0, BLOCK_M)
        inside_m = offs_m < M
        offs_m = offs_m.to(tl.int64)
        g = tl.load(g_columns + offs_m[None, :] * stride_gm, mask=inside_n[:, None] & inside_m[None, :], other=0.0)
        s = tl.load(s_columns + offs_m[:, None] * stride_sm, mask=inside_m[:, None] & inside_r[None, :], other=0.0)
        g = as_operand(as_operand(g, COMPUTE), OPERAND)
        if DROPPED:
            g = tl.where(tl.trans(is_kept(seed, limit, offs_m, tl.program_id(0) * BLOCK_N, BLOCK_N)), g, 0.0)
        acc = tl.dot(g, as_operand(s, OPERAND), acc, input_precision=PRECISION, out_dtype=ACC)
    out = as_stored(acc * tl.full((1, 1), scale, ACC), out_ptr.dtype.element_ty)
    out_rows = out_ptr + split.to(tl.int64) * stride_op + offs_n.to(tl.int64)[:, None] * stride_on
    tl.store(out_rows + offs_r.to(tl.int64)[None, :] * stride_or, out, mask=inside_n[:, None] & inside_r[None, :])


def weight_grad(
    g: torch.Tensor,
    s: torch.Tensor,
    scale: float,
    compute: torch.dtype,
    out: torch.Tensor,
    kept: Kept | None = None,
) -> None:
    """``out[N, R] = scale · g[M, N]ᵀ · S[M, R]``; for dA pass x, T and a transposed [R, K].

    Args:
        g: [M, N], any strides; rounded to `compute` when it is loaded.   s: [M, R], from `lora_shrink`.
        out: [N, R], any strides, overwritten; the sum is rounded to its dtype once.
        kept: the elements of g that dropout keeps; the others count as 0.

    The grid is (tiles of N, tiles of R, splits of M). A tile covers the whole rank up to 64, so that g is read once.
    For example, a g of width 4096 has 32 tiles of 128, and splitting M gives 256 programs. Each split writes its own
    partial sum and `split_k_reduce` adds them in order, so that two runs agree bit for bit, unlike with atomics.
    """
    (M, N), R = g.shape, s.shape[1]
    if 0 in (M, N, R):
        out.zero_()
        return
    config = weight_grad_config(M, N, R, compute, is_lean(g, compute), kept is not None)
    tiles = triton.cdiv(N, config.blocks["BLOCK_N"]), triton.cdiv(R, config.blocks["BLOCK_R"])
    splits = splits_of(M, tiles[0] * tiles[1], least=2 * config.blocks["BLOCK_M"])
    run = triton.cdiv(triton.cdiv(M, splits), config.blocks["BLOCK_M"]) * config.blocks["BLOCK_M"]
    splits = triton.cdiv(M, run)
    if splits == 1:
        target, factor = out.unsqueeze(0), float(scale)
    else:
        target, factor = torch.empty(splits, N, R, dtype=accumulator(compute), device=g.device), 1.0
    strides = (*g.stride(), *s.stride(), *target.stride())
    grid = (*tiles, splits)
    numbers = (factor, *(kept or NONE_DROPPED), M, N, R, run)
    constants = {"DROPPED": kept is not None, **mixed_dot(compute)}
    launch(weight_grad_kernel, grid, g, s, target, *numbers, *strides, config=config, **constants)
    if splits > 1:
        split_k_reduce(target, scale, out)


def weight_grad_config(M: int, N: int, R: int, compute: torch.dtype, lean: bool, dropped: bool = False) -> Config:
    """Block sizes by shape; N is the row axis of the product, and float32 or masked operands get smaller tiles."""
    if INTERPRETED:
        blocks = {
            "BLOCK_M": block(M, 16, 64, 128),
            "BLOCK_N": block(N, 16, 64, 128),
            "BLOCK_R": block(R, 16, 64),
        }
        return Config(blocks, num_warps=1, num_stages=1)
    if compute == torch.float32:
        blocks = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_R": block(R, 16, 32)}
        return Config(blocks, num_warps=4, num_stages=2 if lean else 3)
    if compute == torch.float16:
        blocks = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_R": 16 if dropped else block(R, 16, 32)}
        return Config(blocks, num_warps=4, num_stages=3)
    lean = lean or (dropped and R > 16)
    blocks = {"BLOCK_M": 32 if lean else 64, "BLOCK_N": 64 if lean else 128, "BLOCK_R": block(R, 16, 64)}
    return Config(blocks, num_warps=4, num_stages=3 if lean else 4)
