"""S = X · Aᵀ, from the features to the rank; with g for X and Bᵀ for A, T = g · B."""
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
    native_dot,
    splits_of,
)
from optimized.philox import Kept


@triton.jit(do_not_specialize=["M", "seed", "limit"])
def lora_shrink_kernel(
    x_ptr,
    a_ptr,
    s_ptr,
    seed: tl.int64,
    limit: tl.int32,
    M,
    K,
    R,
    K_OF_SPLIT,
    stride_xm,
    stride_xk,
    stride_ar,
    stride_ak,
    stride_sp,
    stride_sm,
    stride_sr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    DROPPED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One [BLOCK_M, BLOCK_R] tile of S, over the K_OF_SPLIT columns of X in this split.

    If DROPPED, X is masked by dropout.
    """
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    k_from = split * K_OF_SPLIT
    k_to = tl.minimum(k_from + K_OF_SPLIT, K)
    inside_m = offs_m < M
    inside_r = offs_r < R
    x_rows = x_ptr + offs_m.to(tl.int64)[:, None] * stride_xm
    a_rows = a_ptr + offs_r.to(tl.int64)[None, :] * stride_ar
    acc = tl.full((BLOCK_M, BLOCK_R), 0, ACC)
    # Walks K; masked loads fill its tail with zeros. Splits end at whole blocks, so that only K itself has a tail.
    for k in range(k_from, k_to, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        inside_k = offs_k < K
        offs_k = offs_k.to(tl.int64)
        x = tl.load(x_rows + offs_k[None, :] * stride_xk, mask=inside_m[:, None] & inside_k[None, :], other=0.0)
        a = tl.load(a_rows + offs_k[:, None] * stride_ak, mask=inside_k[:, None] & inside_r[None, :], other=0.0)
        x = as_operand(x, OPERAND)
        if DROPPED:
            x = tl.where(is_kept(seed, limit, offs_m, k, BLOCK_K), x, 0.0)
        acc = tl.dot(x, as_operand(a, OPERAND), acc, input_precision=PRECISION, out_dtype=ACC)
    s_rows = s_ptr + split.to(tl.int64) * stride_sp + offs_m.to(tl.int64)[:, None] * stride_sm
    tl.store(s_rows + offs_r[None, :] * stride_sr, acc, mask=inside_m[:, None] & inside_r[None, :])


def lora_shrink(x: torch.Tensor, a: torch.Tensor, compute: torch.dtype, kept: Kept | None = None) -> torch.Tensor:
    """``S[M, R] = X[M, K] · A[R, K]ᵀ``.

    Args:
        x: [M, K].   a: [R, K].   Any strides; both are rounded to `compute` when they are loaded.
        compute: the dtype of the factors; sums are in float32 (float64 for float64).
        kept: the elements of x that dropout keeps; the others count as 0.
    Returns:
        [M, R], float32 (float64 for float64), so that the intermediate is not rounded twice.

    The grid is (tiles of M, tiles of R, splits of K). A tile covers the whole rank up to 64, so that X is read once. It
    has few rows, so that 8192 rows give 128 programs. With fewer rows K is split, and the partial sums are added in a
    fixed order.
    """
    (M, K), R = x.shape, a.shape[0]
    dtype = accumulator(compute)
    if 0 in (M, K, R):
        return torch.zeros(M, R, dtype=dtype, device=x.device)
    lean = is_lean(x, compute) or (R > 16 and is_lean(a, compute))
    config = lora_shrink_config(M, K, R, compute, lean, kept is not None)
    tiles = triton.cdiv(M, config.blocks["BLOCK_M"]), triton.cdiv(R, config.blocks["BLOCK_R"])
    splits = splits_of(K, tiles[0] * tiles[1], least=4 * config.blocks["BLOCK_K"])
    run = triton.cdiv(triton.cdiv(K, splits), config.blocks["BLOCK_K"]) * config.blocks["BLOCK_K"]
    splits = triton.cdiv(K, run)
    partials = torch.empty(splits, M, R, dtype=dtype, device=x.device)
    strides = (*x.stride(), *a.stride(), *partials.stride())
    launch(
        lora_shrink_kernel,
        (*tiles, splits),
        x,
        a,
        partials,
        *(kept or NONE_DROPPED),
        M,
        K,
        R,
        run,
        *strides,
        config=config,
        DROPPED=kept is not None,
        **native_dot(compute),
    )
    if splits == 1:
        return partials[0]
    s = torch.empty(M, R, dtype=dtype, device=x.device)
    split_k_reduce(partials, 1.0, s)
    return s


def lora_shrink_config(M: int, K: int, R: int, compute: torch.dtype, lean: bool, dropped: bool = False) -> Config:
    """Block sizes by shape; 16-bit products fill the 64 rows of a warp group, float32 products run on FMA units."""
    if INTERPRETED:
        blocks = {
            "BLOCK_M": block(M, 16, 32, 64, 128),
            "BLOCK_R": block(R, 16, 64),
            "BLOCK_K": block(K, 16, 64, 128),
        }
        return Config(blocks, num_warps=1, num_stages=1)
    if compute == torch.float32:
        blocks = {"BLOCK_M": 16 if lean and dropped else 32, "BLOCK_R": block(R, 16, 32), "BLOCK_K": 32}
        return Config(blocks, num_warps=4, num_stages=2 if lean else 3)
    if M <= 512:
        blocks = {"BLOCK_M": 16, "BLOCK_R": block(R, 16, 64), "BLOCK_K": 32 if lean else 64}
    else:
        blocks = {"BLOCK_M": 64, "BLOCK_R": block(R, 16, 64), "BLOCK_K": 32 if lean else 128}
    return Config(blocks, num_warps=4, num_stages=4)
