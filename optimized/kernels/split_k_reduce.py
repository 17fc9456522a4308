"""out = scale · Σₚ partials[p], added in the order of p."""
# mypy: allow-incomplete-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl

from optimized.kernels.tiles import INTERPRETED, TL_DTYPE, Config, as_stored, block, launch


@triton.jit(do_not_specialize=["P"])
def split_k_reduce_kernel(
    partials_ptr,
    out_ptr,
    scale: tl.float64,
    P,
    N,
    R,
    stride_pp,
    stride_pn,
    stride_pr,
    stride_on,
    stride_or,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One [BLOCK_N, BLOCK_R] tile of the sum."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    offs_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
    inside = (offs_n < N)[:, None] & (offs_r < R)[None, :]
    tile_ptr = partials_ptr + offs_n[:, None] * stride_pn + offs_r[None, :] * stride_pr
    acc = tl.full((BLOCK_N, BLOCK_R), 0, ACC)
    # Walks P, which has no tail; N and R are masked.
    for p in range(P):
        acc += tl.load(tile_ptr + tl.full((1, 1), p, tl.int64) * stride_pp, mask=inside, other=0.0)
    out = as_stored(acc * tl.full((1, 1), scale, ACC), out_ptr.dtype.element_ty)
    tl.store(out_ptr + offs_n[:, None] * stride_on + offs_r[None, :] * stride_or, out, mask=inside)


def split_k_reduce(partials: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """``out[N, R] = scale · Σₚ partials[p, N, R]``, rounded once to the dtype of `out`.

    The grid is (tiles of N, tiles of R). Blocks are small, 1024 elements: the partials come from L2, and many programs
    are needed to hide its latency.
    """
    P, N, R = partials.shape
    config = split_k_reduce_config(N, R)
    grid = triton.cdiv(N, config.blocks["BLOCK_N"]), triton.cdiv(R, config.blocks["BLOCK_R"])
    strides = (*partials.stride(), *out.stride())
    acc = TL_DTYPE[partials.dtype]
    launch(split_k_reduce_kernel, grid, partials, out, float(scale), P, N, R, *strides, config=config, ACC=acc)


def split_k_reduce_config(N: int, R: int) -> Config:
    """Block sizes by shape: up to 64 of R, and enough of N for 1024 elements."""
    if INTERPRETED:
        return Config({"BLOCK_N": block(N, 16, 64, 128), "BLOCK_R": block(R, 16, 64)}, num_warps=1, num_stages=1)
    block_r = block(R, 16, 64)
    return Config({"BLOCK_N": 1024 // block_r, "BLOCK_R": block_r}, num_warps=4, num_stages=1)
