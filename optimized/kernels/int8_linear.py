"""The exact product q_x · q_wᵀ of int8 operands, with an epilogue for zero points, scales and bias."""
# mypy: allow-incomplete-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl

from optimized.kernels.tiles import INTERPRETED, Config, as_stored, block, launch


@triton.jit(do_not_specialize=["M"])
def int8_linear_kernel(
    x_ptr,
    w_ptr,
    rows_ptr,
    columns_ptr,
    y_ptr,
    M,
    N,
    K,
    stride_xm,
    stride_xk,
    stride_wn,
    stride_wk,
    stride_ym,
    stride_yn,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One [BLOCK_M, BLOCK_N] tile of Y; rows are [3, M] and columns [4, N], contiguous float64."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_m = offs_m < M
    inside_n = offs_n < N
    x_rows = x_ptr + offs_m.to(tl.int64)[:, None] * stride_xm
    w_rows = w_ptr + offs_n.to(tl.int64)[None, :] * stride_wn
    acc = tl.full((BLOCK_M, BLOCK_N), 0, tl.int32)
    # Walks K; masked loads fill its tail with zeros.
    for k in range(0, K, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        inside_k = offs_k < K
        offs_k = offs_k.to(tl.int64)
        x = tl.load(x_rows + offs_k[None, :] * stride_xk, mask=inside_m[:, None] & inside_k[None, :], other=0)
        w = tl.load(w_rows + offs_k[:, None] * stride_wk, mask=inside_k[:, None] & inside_n[None, :], other=0)
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
    m, n = offs_m.to(tl.int64), offs_n.to(tl.int64)
    rest_x = tl.load(rows_ptr + m, mask=inside_m, other=0.0)
    zero_x = tl.load(rows_ptr + m + M, mask=inside_m, other=0.0)
    zero_w = tl.load(columns_ptr + n, mask=inside_n, other=0.0)
    sum_w = tl.load(columns_ptr + n + N, mask=inside_n, other=0.0)
    y = acc.to(tl.float64) - (rest_x[:, None] * zero_w[None, :] + zero_x[:, None] * sum_w[None, :])
    y_ptrs = y_ptr + m[:, None] * stride_ym + n[None, :] * stride_yn
    inside = inside_m[:, None] & inside_n[None, :]
    if SCALED:
        scale_x = tl.load(rows_ptr + m + M + M, mask=inside_m, other=0.0)
        scale_w = tl.load(columns_ptr + n + N + N, mask=inside_n, other=0.0)
        y = y * (scale_x[:, None] * scale_w[None, :])
        if BIASED:
            y += tl.load(columns_ptr + n + N + N + N, mask=inside_n, other=0.0)[None, :]
        if y_ptr.dtype.element_ty != tl.float64:
            y = y.to(tl.float32)  # torch also rounds to 16 bits from float32
        tl.store(y_ptrs, as_stored(y, y_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(y_ptrs, y.to(tl.int64), mask=inside)


def int8_linear(
    x: torch.Tensor, weight: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, y: torch.Tensor
) -> None:
    """``y = x · wᵀ - (rows₀·columns₀ + rows₁·columns₁)``, and ``· (rows₂·columns₂) + columns₃`` for a y of floats.

    The product is summed in int32, which holds sums over fewer than 2¹⁷ features. The rest is in float64, and exact if
    all integers stay below 2⁵³. The two scales are multiplied first and no operations are fused, so the result equals
    PyTorch's bit for bit.

    Args:
        x: int8 [M, K].   weight: int8 [N, K].   Any strides.
        rows: float64 [2, M], [3, M] with scales.   columns: float64 [2, N], [3, N] with scales, [4, N] with a bias.
        y: [M, N], any strides, overwritten: int64 without scales, else of a float dtype.

    The grid is (tiles of M, tiles of N). 128 × 64 is the largest tile whose float64 epilogue fits in
    registers: 128 × 128 spills. The int32 sums are not written to memory.
    """
    (M, K), N = x.shape, weight.shape[0]
    if 0 in (M, N):
        return
    config = int8_linear_config(M, N, K, _is_lean(x) or _is_lean(weight))
    grid = triton.cdiv(M, config.blocks["BLOCK_M"]), triton.cdiv(N, config.blocks["BLOCK_N"])
    scaled = y.is_floating_point()
    tensors = (x, weight, rows.contiguous(), columns.contiguous(), y)
    strides = (*x.stride(), *weight.stride(), *y.stride())
    constants = {"SCALED": scaled, "BIASED": scaled and len(columns) == 4, **NOT_FUSED}
    launch(int8_linear_kernel, grid, *tensors, M, N, K, *strides, config=config, **constants)


NOT_FUSED = {} if INTERPRETED else {"enable_fp_fusion": False}
"""A launch option: ``y · scale + bias`` is rounded twice, as in PyTorch."""


def int8_linear_config(M: int, N: int, K: int, lean: bool) -> Config:
    """Block sizes by shape; operands loaded byte by byte get smaller tiles, and few rows get tiles of 16."""
    if INTERPRETED:
        blocks = {
            "BLOCK_M": block(M, 16, 32, 64, 128),
            "BLOCK_N": block(N, 16, 64, 128),
            "BLOCK_K": block(K, 32, 128, 512),
        }
        return Config(blocks, num_warps=1, num_stages=1)
    if lean:
        return Config({"BLOCK_M": 16 if M <= 16 else 32, "BLOCK_N": 32, "BLOCK_K": 32}, num_warps=4, num_stages=2)
    if M <= 64:
        return Config({"BLOCK_M": 16 if M <= 16 else 64, "BLOCK_N": 64, "BLOCK_K": 128}, num_warps=4, num_stages=4)
    return Config({"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 128}, num_warps=8, num_stages=3)


def _is_lean(operand: torch.Tensor) -> bool:
    """Whether rows cannot be loaded in 16-byte pieces; see `tiles.is_lean`."""
    return (
        operand.data_ptr() % 16 != 0 or operand.stride(1) != 1 or bool(operand.stride(0) % 16 or operand.shape[1] % 16)
    )
