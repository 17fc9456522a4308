"""The numbers Ŵ [N, K] of a packed weight, written once."""
# mypy: allow-incomplete-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl

from optimized.kernels.packed_storage import Storage, packed_numbers
from optimized.kernels.tiles import INTERPRETED, Config, as_stored, block, launch


@triton.jit
def packed_dequantize_kernel(
    codes_ptr,
    table_ptr,
    scale_ptr,
    zero_ptr,
    w_ptr,
    N,
    K,
    PAIRED: tl.constexpr,
    TABLE: tl.constexpr,
    ZERO: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One [BLOCK_N, BLOCK_K] tile of Ŵ, which is contiguous."""
    n = (tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    k = (tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K))[None, :]
    inside = (n < N) & (k < K)
    w = packed_numbers(
        codes_ptr, table_ptr, scale_ptr, zero_ptr, n, k, K, inside, PAIRED, TABLE, ZERO, GROUP, ROWS, FACTOR
    )
    tl.store(w_ptr + n * K + k, as_stored(w, w_ptr.dtype.element_ty), mask=inside)


def packed_dequantize(storage: Storage, dtype: torch.dtype) -> torch.Tensor:
    """Ŵ [N, K] in dtype: computed in float32 in the order of the reference, and rounded once.

    The grid is (tiles of N, tiles of K); every element is written once. A row of 256 codes is 128 or 256 bytes, whole
    cache lines, and four rows give each thread eight elements.
    """
    n, k = storage.shape
    w = torch.empty(n, k, dtype=dtype, device=storage.codes.device)
    config = packed_dequantize_config(n, k)
    grid = triton.cdiv(n, config.blocks["BLOCK_N"]), triton.cdiv(k, config.blocks["BLOCK_K"])
    launch(packed_dequantize_kernel, grid, *storage.tensors, w, n, k, config=config, **storage.constants)
    return w


def packed_dequantize_config(N: int, K: int) -> Config:
    """One tile size on a GPU; under the interpreter, tiles for the fewest programs."""
    if INTERPRETED:
        return Config({"BLOCK_N": block(N, 16, 64, 128), "BLOCK_K": block(K, 32, 128)}, num_warps=1, num_stages=1)
    return Config({"BLOCK_N": 4, "BLOCK_K": 256}, num_warps=4, num_stages=1)
