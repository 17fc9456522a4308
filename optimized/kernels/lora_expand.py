"""Y = scale · S · Bᵀ, from the rank to the features; with T for S and Aᵀ for B, dX = scale · T · A."""
# mypy: allow-incomplete-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl

from optimized.kernels.dropout_mask import NONE_DROPPED, is_kept
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
from optimized.philox import Kept


@triton.jit(do_not_specialize=["M", "seed", "limit"])
def lora_expand_kernel(
    s_ptr,
    b_ptr,
    y_ptr,
    scale: tl.float64,
    seed: tl.int64,
    limit: tl.int32,
    M,
    N,
    R,
    stride_sm,
    stride_sr,
    stride_bn,
    stride_br,
    stride_ym,
    stride_yn,
    COMPUTE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    ADDED: tl.constexpr,
    DROPPED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One [BLOCK_M, BLOCK_N] tile of Y, which is overwritten, or added to if ADDED."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_m = offs_m < M
    inside_n = offs_n < N
    s_rows = s_ptr + offs_m.to(tl.int64)[:, None] * stride_sm
    b_rows = b_ptr + offs_n.to(tl.int64)[None, :] * stride_bn
    acc = tl.full((BLOCK_M, BLOCK_N), 0, ACC)
    # Walks R; masked loads fill its tail with zeros.
    for r in range(0, R, BLOCK_R):
        offs_r = r + tl.arange(0, BLOCK_R)
        inside_r = offs_r < R
        offs_r = offs_r.to(tl.int64)
        s = tl.load(s_rows + offs_r[None, :] * stride_sr, mask=inside_m[:, None] & inside_r[None, :], other=0.0)
        b = tl.load(b_rows + offs_r[:, None] * stride_br, mask=inside_r[:, None] & inside_n[None, :], other=0.0)
        acc = tl.dot(
            as_operand(s, OPERAND),
            as_operand(as_operand(b, COMPUTE), OPERAND),
            acc,
            input_precision=PRECISION,
            out_dtype=ACC,
        )
    y = acc * tl.full((1, 1), scale, ACC)
    if DROPPED:
        y = tl.where(is_kept(seed, limit, offs_m, tl.program_id(1) * BLOCK_N, BLOCK_N), y, 0.0)
    of_y = y_ptr + offs_m.to(tl.int64)[:, None] * stride_ym + offs_n.to(tl.int64)[None, :] * stride_yn
    inside = inside_m[:, None] & inside_n[None, :]
    if ADDED:
        y += as_operand(tl.load(of_y, mask=inside, other=0.0), ACC)
    tl.store(of_y, as_stored(y, y_ptr.dtype.element_ty), mask=inside)


def lora_expand(
    s: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    compute: torch.dtype,
    out: torch.Tensor,
    added: bool = False,
    kept: Kept | None = None,
) -> None:
    """``out[M, N] = scale · S[M, R] · B[N, R]ᵀ``, or added to out with `added`.

    Args:
        s: [M, R], from `lora_shrink`.   b: [N, R], any strides; rounded to `compute` when it is loaded.
        scale: applied to the sum, before the only rounding.
        out: [M, N], any strides, overwritten; the sum is rounded to its dtype once.
        kept: the elements of the product that dropout keeps; the others are 0. The mask applies before the addition.
        added: add to out, whose rows must have unit stride; other strides need too many registers for addresses.

    The grid is (tiles of M, tiles of N). Only R is reduced, so every tile of Y is written once. A tile must be wide
    enough for whole 128-byte lines and small enough for the registers.
    """
    (M, R), N = s.shape, b.shape[0]
    if 0 in (M, N, R):
        if not added:
            out.zero_()
        return
    config = lora_expand_config(M, N, R, compute, R > 16 and is_lean(b, compute), kept is not None)
    grid = triton.cdiv(M, config.blocks["BLOCK_M"]), triton.cdiv(N, config.blocks["BLOCK_N"])
    strides = (*s.stride(), *b.stride(), *out.stride())
    numbers = (float(scale), *(kept or NONE_DROPPED), M, N, R)
    constants = {"ADDED": added, "DROPPED": kept is not None, **mixed_dot(compute)}
    launch(lora_expand_kernel, grid, s, b, out, *numbers, *strides, config=config, **constants)


def lora_expand_config(M: int, N: int, R: int, compute: torch.dtype, lean: bool, dropped: bool = False) -> Config:
    """Block sizes by shape; few rows get tiles of 16, and float32 operands get smaller tiles."""
    if INTERPRETED:
        blocks = {
            "BLOCK_M": block(M, 16, 32, 64, 128),
            "BLOCK_N": block(N, 16, 64, 128),
            "BLOCK_R": block(R, 16, 64),
        }
        return Config(blocks, num_warps=1, num_stages=1)
    if compute == torch.float32:
        return Config({"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_R": block(R, 16, 32)}, num_warps=4, num_stages=2)
    if compute == torch.float16:
        block_r = 16 if lean and dropped else block(R, 16, 32)
        blocks = {"BLOCK_M": 32 if lean else 64, "BLOCK_N": 64, "BLOCK_R": block_r}
    elif M <= 512:
        blocks = {"BLOCK_M": 16, "BLOCK_N": 64 if lean else 128, "BLOCK_R": block(R, 16, 64)}
    elif lean:
        blocks = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_R": block(R, 16, 64)}
    else:
        blocks = {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_R": block(R, 16, 64)}
    return Config(blocks, num_warps=4, num_stages=2)
