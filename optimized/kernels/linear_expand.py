"""y = x · Wᵀ + b + scale · S · Bᵀ in one persistent kernel, which moves tiles by tensor descriptors (TMA)."""
# mypy: allow-incomplete-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from optimized.kernels.dropout_mask import NONE_DROPPED, is_kept
from optimized.kernels.tiles import INTERPRETED, TL_DTYPE, Config, as_operand, as_stored, block, launch
from optimized.kernels.tuned import tuned
from optimized.philox import Kept
from optimized.tuned_kernels import linear_expand_entry


@triton.jit(do_not_specialize=["M", "seed", "limit"])
def linear_expand_kernel(
    bias_ptr,
    s_ptr,
    b_ptr,
    x_desc,
    w_desc,
    y_desc,
    scale: tl.float64,
    seed: tl.int64,
    limit: tl.int32,
    M,
    N,
    K,
    R,
    stride_sm,
    stride_sr,
    stride_bn,
    stride_br,
    OPERAND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    K_FIRST: tl.constexpr,
    DROPPED: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Every num_programs-th [BLOCK_M, BLOCK_N] tile of y, from the index of this program.

    Tiles are ordered down GROUP_M rows of tiles before across, so that concurrent tiles share operands in the cache.
    W is [K, N] if K_FIRST, else [N, K].
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    # Walks the tiles; descriptors read zeros beyond M, N and K, and do not write there.
    for tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        first = tile // (GROUP_M * tiles_n) * GROUP_M
        rows = tl.minimum(tiles_m - first, GROUP_M)
        within = tile % (GROUP_M * tiles_n)
        m = (first + within % rows) * BLOCK_M
        n = within // rows * BLOCK_N
        acc = tl.full((BLOCK_M, BLOCK_N), 0, tl.float32)
        offs_m = m + tl.arange(0, BLOCK_M)
        offs_n = n + tl.arange(0, BLOCK_N)
        s_rows = s_ptr + offs_m.to(tl.int64)[:, None] * stride_sm
        b_columns = b_ptr + offs_n.to(tl.int64)[None, :] * stride_bn
        # Walks R; masked loads fill its tail with zeros.
        for r in range(0, R, BLOCK_R):
            offs_r = r + tl.arange(0, BLOCK_R)
            inside_r = offs_r < R
            offs_r = offs_r.to(tl.int64)
            of_s = s_rows + offs_r[None, :] * stride_sr
            of_b = b_columns + offs_r[:, None] * stride_br
            s = tl.load(of_s, mask=(offs_m < M)[:, None] & inside_r[None, :], other=0.0)
            b = tl.load(of_b, mask=inside_r[:, None] & (offs_n < N)[None, :], other=0.0)
            s = as_operand(s * tl.full((1, 1), scale, tl.float32), OPERAND)
            acc = tl.dot(s, as_operand(b, OPERAND), acc, out_dtype=tl.float32)
        if DROPPED:
            acc = tl.where(is_kept(seed, limit, offs_m, n, BLOCK_N), acc, 0.0)
        # Walks K; descriptors fill its tail with zeros.
        for k in range(0, K, BLOCK_K):
            x = as_operand(x_desc.load([m, k]), OPERAND)
            if K_FIRST:
                w = as_operand(w_desc.load([k, n]), OPERAND)
            else:
                w = tl.trans(as_operand(w_desc.load([n, k]), OPERAND))
            acc = tl.dot(x, w, acc, out_dtype=tl.float32)
        if HAS_BIAS:
            acc += as_operand(tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0), tl.float32)[None, :]
        y_desc.store([m, n], as_stored(acc, y_desc.dtype))


def linear_expand(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    s: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    config: Config | None = None,
    kept: Kept | None = None,
) -> torch.Tensor:
    """``x[M, K] · W[N, K]ᵀ + bias[N] + scale · S[M, R] · B[N, R]ᵀ``, summed in float32 and rounded once.

    Args:
        x, w, bias, b: of one 16-bit dtype; x and w satisfy `why_not_one_kernel`; w may be a transposed [K, N].
        s: [M, R], from `lora_shrink`; scale · S is rounded to the dtype of x.
        config: None for the entry of `tuned.json`, or without one `linear_expand_config`.
        kept: the elements of the update that dropout keeps.
    Returns:
        [M, N] in the dtype of x.

    The grid is one program per multiprocessor. Each program walks over tiles, so that the stores of one tile can
    overlap with the products of the next.
    """
    (M, K), N, R = x.shape, w.shape[0], s.shape[1]
    y = x.new_empty(M, N)
    if config is None and kept is None:  # entries are measured without a mask
        config = tuned(linear_expand_entry(w), x.device, x.dtype, M=M, N=N, K=K, R=R)
    config = config or linear_expand_config(M, N, K, kept is not None)
    BLOCK_M, BLOCK_N, BLOCK_K = (config.blocks[f"BLOCK_{axis}"] for axis in "MNK")
    k_first = w.stride(1) != 1
    stored = w.mT if k_first else w
    descriptors = (
        TensorDescriptor.from_tensor(x, [BLOCK_M, BLOCK_K]),
        TensorDescriptor.from_tensor(stored, [BLOCK_K, BLOCK_N] if k_first else [BLOCK_N, BLOCK_K]),
        TensorDescriptor.from_tensor(y, [BLOCK_M, BLOCK_N]),
    )
    tiles = triton.cdiv(M, BLOCK_M) * triton.cdiv(N, BLOCK_N)
    launch(
        linear_expand_kernel,
        (min(tiles, _programs(x.device)),),
        y if bias is None else bias.contiguous(),
        s,
        b,
        *descriptors,
        float(scale),
        *(kept or NONE_DROPPED),
        M,
        N,
        K,
        R,
        *s.stride(),
        *b.stride(),
        config=config,
        OPERAND=TL_DTYPE[x.dtype],
        HAS_BIAS=bias is not None,
        K_FIRST=k_first,
        DROPPED=kept is not None,
        GROUP_M=8,
    )
    return y


def linear_expand_config(M: int, N: int, K: int, dropped: bool = False) -> Config:
    """Block sizes by shape; 128 × 256 sums fill the registers of two warp groups, and three stages the shared memory.

    With a mask, 128 × 256 sums would spill.
    """
    if INTERPRETED:
        blocks = {"BLOCK_M": block(M, 16, 64), "BLOCK_N": block(N, 16, 64), "BLOCK_K": block(K, 16, 64), "BLOCK_R": 16}
        return Config(blocks, num_warps=1, num_stages=1)
    blocks = {"BLOCK_M": 128, "BLOCK_N": 128 if dropped else block(N, 128, 256), "BLOCK_K": 64, "BLOCK_R": 16}
    return Config(blocks, num_warps=8, num_stages=3)


def _programs(device: torch.device) -> int:
    """One program per multiprocessor; two under the interpreter, so that each walks over several tiles."""
    return 2 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count
