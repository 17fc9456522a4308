"""T = g · B and dB = scale · gᵀ · S, from one reading of g."""
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
    block,
    is_lean,
    launch,
    mixed_dot,
    splits_of,
)
from optimized.kernels.tuned import tuned
from optimized.philox import Kept
from optimized.tuned_kernels import MOST_ONE_READING_RANK


@triton.jit(do_not_specialize=["M", "seed", "limit"])
def shrink_and_grad_kernel(
    g_ptr,
    b_ptr,
    s_ptr,
    t_ptr,
    d_ptr,
    seed: tl.int64,
    limit: tl.int32,
    M,
    N,
    R,
    M_OF_SPLIT,
    stride_gm,
    stride_gn,
    stride_bn,
    stride_br,
    stride_sm,
    stride_sr,
    stride_tp,
    stride_tm,
    stride_tr,
    stride_dp,
    stride_dn,
    stride_dr,
    COMPUTE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    DROPPED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """The partial sums of T and dB from BLOCK_N columns of g and the M_OF_SPLIT tokens of this split."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_r = tl.arange(0, BLOCK_R)
    split = tl.program_id(1)
    m_from = split * M_OF_SPLIT
    m_to = tl.minimum(m_from + M_OF_SPLIT, M)
    inside_n = offs_n < N
    inside_r = offs_r < R
    offs_r = offs_r.to(tl.int64)
    columns = offs_n.to(tl.int64)
    of_b = b_ptr + columns[:, None] * stride_bn + offs_r[None, :] * stride_br
    b = as_operand(tl.load(of_b, mask=inside_n[:, None] & inside_r[None, :], other=0.0), COMPUTE)
    g_columns = g_ptr + columns[None, :] * stride_gn
    s_columns = s_ptr + offs_r[None, :] * stride_sr
    t_columns = t_ptr + tl.program_id(0).to(tl.int64) * stride_tp + offs_r[None, :] * stride_tr
    acc = tl.full((BLOCK_N, BLOCK_R), 0, ACC)
    # Walks M; masked loads fill its tail with zeros. Splits end at whole blocks, so that only M itself has a tail.
    for m in range(m_from, m_to, BLOCK_M):
        offs_m = m + tl.arange(0, BLOCK_M)
        inside_m = offs_m < M
        offs_m = offs_m.to(tl.int64)
        g = tl.load(g_columns + offs_m[:, None] * stride_gm, mask=inside_m[:, None] & inside_n[None, :], other=0.0)
        s = tl.load(s_columns + offs_m[:, None] * stride_sm, mask=inside_m[:, None] & inside_r[None, :], other=0.0)
        g = as_operand(g, COMPUTE)
        if DROPPED:
            g = tl.where(is_kept(seed, limit, offs_m, tl.program_id(0) * BLOCK_N, BLOCK_N), g, 0.0)
        t = tl.dot(g, b, input_precision="ieee", out_dtype=ACC)
        tl.store(t_columns + offs_m[:, None] * stride_tm, t, mask=inside_m[:, None] & inside_r[None, :])
        acc = tl.dot(
            tl.trans(as_operand(g, OPERAND)), as_operand(s, OPERAND), acc, input_precision=PRECISION, out_dtype=ACC
        )
    d_rows = d_ptr + split.to(tl.int64) * stride_dp + columns[:, None] * stride_dn
    tl.store(d_rows + offs_r[None, :] * stride_dr, acc, mask=inside_n[:, None] & inside_r[None, :])


def shrink_and_grad(
    g: torch.Tensor,
    b: torch.Tensor,
    s: torch.Tensor,
    scale: float,
    compute: torch.dtype,
    out: torch.Tensor,
    config: Config | None = None,
    kept: Kept | None = None,
) -> torch.Tensor:
    """``T[M, R] = g[M, N] · B[N, R]``, returned, and ``out[N, R] = scale · gᵀ · S[M, R]``.

    Args:
        g: [M, N].   b: [N, R], R at most `MOST_ONE_READING_RANK`.   Any strides; rounded to `compute` when loaded.
        s: [M, R], from `lora_shrink`.
        out: [N, R], any strides, overwritten; the sum is rounded to its dtype once.
        config: None for the entry of `tuned.json`, or without one `shrink_and_grad_config`.
        kept: the elements of g that dropout keeps; the others count as 0.
    Returns:
        [M, R], float32 (float64 for float64), as in `lora_shrink`.

    The grid is (tiles of N, splits of M). A program keeps its part of dB in registers while it walks over its tokens,
    and writes its part of T after each step. Both are partial sums, of T over tiles of N and of dB over splits of M;
    `split_k_reduce` adds them in order. Tiles are as wide and splits as long as registers and 132 multiprocessors
    allow, because every partial sum is written and read again.
    """
    (M, N), R = g.shape, b.shape[1]
    dtype = accumulator(compute)
    if 0 in (M, N, R):
        out.zero_()
        return torch.zeros(M, R, dtype=dtype, device=g.device)
    lean = is_lean(g, compute)
    if config is None and not lean and kept is None:  # entries are measured without a mask
        config = tuned("shrink_and_grad", g.device, compute, M=M, N=N, R=R)
    config = config or shrink_and_grad_config(M, N, R, compute, lean, kept is not None)
    tiles = triton.cdiv(N, config.blocks["BLOCK_N"])
    splits = splits_of(M, 2 * tiles, least=2 * config.blocks["BLOCK_M"])
    run = triton.cdiv(triton.cdiv(M, splits), config.blocks["BLOCK_M"]) * config.blocks["BLOCK_M"]
    splits = triton.cdiv(M, run)
    of_t = torch.empty(tiles, M, R, dtype=dtype, device=g.device)
    of_d = torch.empty(splits, N, R, dtype=dtype, device=g.device)
    strides = (*g.stride(), *b.stride(), *s.stride(), *of_t.stride(), *of_d.stride())
    numbers = (*(kept or NONE_DROPPED), M, N, R, run)
    constants = {"DROPPED": kept is not None, **mixed_dot(compute)}
    launch(shrink_and_grad_kernel, (tiles, splits), g, b, s, of_t, of_d, *numbers, *strides, config=config, **constants)
    split_k_reduce(of_d, scale, out)
    if tiles == 1:
        return of_t[0]
    t = torch.empty(M, R, dtype=dtype, device=g.device)
    split_k_reduce(of_t, 1.0, t)
    return t


def shrink_and_grad_config(M: int, N: int, R: int, compute: torch.dtype, lean: bool, dropped: bool = False) -> Config:
    """Block sizes by shape: the whole rank, and 256 or 512 columns of g if its tiles load in 16-byte pieces.

    A mask needs registers, and 512 columns leave none.
    """
    block_r = block(R, 16, MOST_ONE_READING_RANK)
    if INTERPRETED:
        blocks = {"BLOCK_M": block(M, 16, 64, 128), "BLOCK_N": block(N, 16, 64, 128), "BLOCK_R": block_r}
        return Config(blocks, num_warps=1, num_stages=1)
    if lean:
        return Config({"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_R": block_r}, num_warps=4, num_stages=3)
    if compute == torch.float16:
        return Config({"BLOCK_M": 32, "BLOCK_N": 256, "BLOCK_R": block_r}, num_warps=8, num_stages=2)
    widest = 512 if block_r == 16 and not dropped else 256
    return Config({"BLOCK_M": 64, "BLOCK_N": widest, "BLOCK_R": block_r}, num_warps=8, num_stages=2)
