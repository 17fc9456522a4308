"""Y = X · Ŵᵀ + b, or dX = G · Ŵ, where Ŵ is read as codes: its numbers never go to memory."""
# mypy: allow-incomplete-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl

from optimized.kernels.packed_storage import Storage, packed_numbers
from optimized.kernels.tiles import (
    INTERPRETED,
    TL_DTYPE,
    Config,
    as_operand,
    as_stored,
    block,
    launch,
    native_dot,
)


@triton.jit(do_not_specialize=["M"])
def packed_linear_kernel(
    x_ptr,
    codes_ptr,
    table_ptr,
    scale_ptr,
    zero_ptr,
    b_ptr,
    y_ptr,
    M,
    N,
    K,
    stride_xm,
    stride_xk,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROUNDED: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    PAIRED: tl.constexpr,
    TABLE: tl.constexpr,
    ZERO: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One [BLOCK_M, BLOCK_N] tile of a contiguous Y; N are the features of Y and K those of X, transposed or not."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_m = offs_m < M
    inside_n = offs_n < N
    x_rows = x_ptr + offs_m.to(tl.int64)[:, None] * stride_xm
    acc = tl.full((BLOCK_M, BLOCK_N), 0, ACC)
    # Walks K; masked loads fill its tail with zeros.
    for first in range(0, K, BLOCK_K):
        offs_k = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
        inside_k = offs_k < K
        x = tl.load(x_rows + offs_k[None, :] * stride_xk, mask=inside_m[:, None] & inside_k[None, :], other=0.0)
        inside = inside_k[:, None] & inside_n[None, :]
        if TRANSPOSED:  # Y's features are the columns of Ŵ
            w = packed_numbers(
                codes_ptr, table_ptr, scale_ptr, zero_ptr, offs_k[:, None], offs_n[None, :], N, inside,
                PAIRED, TABLE, ZERO, GROUP, ROWS, FACTOR,
            )  # fmt: skip
        else:
            w = packed_numbers(
                codes_ptr, table_ptr, scale_ptr, zero_ptr, offs_n[None, :], offs_k[:, None], K, inside,
                PAIRED, TABLE, ZERO, GROUP, ROWS, FACTOR,
            )  # fmt: skip
        w = as_operand(as_operand(w, ROUNDED), OPERAND)
        acc = tl.dot(as_operand(x, OPERAND), w, acc, input_precision=PRECISION, out_dtype=ACC)
    if HAS_BIAS:
        acc += as_operand(tl.load(b_ptr + offs_n, mask=inside_n, other=0.0), ACC)[None, :]
    of_y = y_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
    tl.store(of_y, as_stored(acc, y_ptr.dtype.element_ty), mask=inside_m[:, None] & inside_n[None, :])


def packed_linear(
    x: torch.Tensor,
    storage: Storage,
    rounded: torch.dtype,
    bias: torch.Tensor | None = None,
    transposed: bool = False,
) -> torch.Tensor:
    """``x Ŵᵀ + b`` [M, N], or ``x Ŵ`` [M, K] if transposed, in x's dtype; Ŵ is rounded to `rounded` first.

    Args:
        x: [M, K], or [M, N] if transposed; any strides.   bias: [N], contiguous, or None.

    The grid is (tiles of M, tiles of the output's features). Each tile of rows computes all numbers again, so there
    are few rows; 64 × 64 numbers at a time leave registers for the addresses of their codes.
    """
    n, k = storage.shape
    features, inner = (k, n) if transposed else (n, k)
    y = torch.empty(x.shape[0], features, dtype=x.dtype, device=x.device)
    config = packed_linear_config(x.shape[0], features, inner, x.dtype)
    grid = triton.cdiv(x.shape[0], config.blocks["BLOCK_M"]), triton.cdiv(features, config.blocks["BLOCK_N"])
    sizes = (x.shape[0], features, inner, *x.stride())
    constants = {"TRANSPOSED": transposed, "HAS_BIAS": bias is not None, "ROUNDED": TL_DTYPE[rounded]}
    constants |= {**native_dot(x.dtype), **storage.constants}
    tensors = (x, *storage.tensors, x if bias is None else bias, y)
    launch(packed_linear_kernel, grid, *tensors, *sizes, config=config, **constants)
    return y


def packed_linear_config(M: int, N: int, K: int, compute: torch.dtype) -> Config:
    """Block sizes by the number of rows; float32 operands, which no tensor core multiplies, get smaller tiles.

    Tiles of 64 × 64 in float32 spill hundreds of bytes, and in 16 bits with 64 rows and four warps 12 bytes on sm_80.
    """
    if INTERPRETED:
        blocks = {"BLOCK_M": block(M, 16, 64), "BLOCK_N": block(N, 16, 64, 128), "BLOCK_K": block(K, 16, 64, 128)}
        return Config(blocks, num_warps=1, num_stages=1)
    if compute == torch.float32:
        return Config({"BLOCK_M": block(M, 16, 32), "BLOCK_N": 32, "BLOCK_K": 32}, num_warps=4, num_stages=2)
    rows = block(M, 16, 32, 64)
    return Config({"BLOCK_M": rows, "BLOCK_N": 64, "BLOCK_K": 64}, num_warps=8 if rows == 64 else 4, num_stages=2)
