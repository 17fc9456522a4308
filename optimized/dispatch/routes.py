"""The choice between several implementations of a product by shape and device, with a cost model of bytes."""

import torch
from torch import Tensor

from optimized.tuned_kernels import MOST_ONE_READING_RANK, linear_expand_entry

ONE_READING = "one reading"  # one pass over g for T and dB
ONE_KERNEL = "one kernel"  # one kernel for the large product and the update
MOST_MASKED_WIDE_RANK = 32  # see `why_not_masking_kernels`
CACHED_BYTES = 2**24  # a third of the L2 cache of an H100 (50 MB), because other operands pass through it too


def why_not_one_reading(g: Tensor, rank: int, compute: torch.dtype, wanted: bool = False) -> str | None:
    """The reason to read g [M, N] twice for T = g · B and dB = gᵀ · S, or None to read it once.

    Reading g from memory takes 2·M·N bytes in 16 bits. A single reading instead writes and reads partial sums: at
    rank 32 about 8·32·M·N·(1/256 + 1/1024) = 1.25·M·N bytes, which mostly stay in the cache; it also needs two more
    launches. On the CPU, where Triton's kernels are interpreted, only the rank matters. With `wanted`, cost is no
    reason.
    """
    if rank > MOST_ONE_READING_RANK:
        return f"at rank {rank} the partial sums of one reading are as many bytes as g"
    if g.device.type == "cpu":
        return None
    if compute.itemsize > 2:
        return f"products in {compute} take as long as reading g"
    if wanted:
        return None
    faster = _measured("shrink_and_grad", g, compute, M=g.shape[0], N=g.shape[1], R=rank)
    size = g.numel() * g.element_size()
    if faster is None and size <= CACHED_BYTES:
        return f"g, {size} bytes, is in the cache when it is read again"
    return "two readings were measured to be faster here" if faster is False else None


def why_not_one_kernel(x: Tensor, weight: Tensor, rank: int, wanted: bool = False, masked: bool = False) -> str | None:
    """The reason to compute ``x[M, K] · weight[N, K]ᵀ`` and the update in two products, or None for one kernel.

    The kernel moves its tiles by descriptors, which need 16-byte alignment. Its cost relative to cuBLAS is known
    only by measurement. So it needs an entry in `optimized/kernels/tuned.json`, and is not used with a dropout mask
    on the update, for which there are no entries. With `wanted`, it is used whenever it can run.
    """
    if reason := _why_not_described(x, weight):
        return reason
    if wanted:
        return None
    if x.device.type == "cpu":
        return "interpreted kernels are not faster"
    if masked:
        return "one kernel was not measured with a mask"
    if not _measured(linear_expand_entry(weight), x, x.dtype, M=x.shape[0], N=weight.shape[0], K=x.shape[1], R=rank):
        return "no measurement shows that one kernel is faster here"
    return None


def why_not_kernels(x: Tensor, weight: Tensor, rank: int) -> str | None:
    """The reason to leave the update of x [*, K] with a weight [N, K] to cuBLAS, or None to use Triton.

    The kernels save a reading of g from memory, but each launch costs more than a launch of cuBLAS. They cannot be
    faster if g is in the cache, or if they read it as often. They always run on the CPU, where they are interpreted,
    and if one kernel was measured to be faster.
    """
    rows, (features, K) = x.numel() // max(x.shape[-1], 1), weight.shape
    if x.device.type == "cpu" or (x.is_contiguous() and why_not_one_kernel(x.view(rows, K), weight, rank) is None):
        return None
    if rank > MOST_ONE_READING_RANK:
        return f"at rank {rank} the kernels read g as often as cuBLAS does"
    if x.dtype.itemsize > 2:
        return f"products in {x.dtype} take as long as reading g"
    if (size := rows * features * x.element_size()) <= CACHED_BYTES:
        return f"g, {size} bytes, is in the cache when it is read again"
    if _measured("shrink_and_grad", x, x.dtype, M=rows, N=features, R=rank) is False:
        return "two readings were measured to be faster here"
    return None


def why_not_masking_kernels(x: Tensor, rank: int) -> str | None:
    """`why_not_kernels` with active dropout, where cuBLAS needs a mask that is drawn, packed, unpacked and applied.

    The mask takes about 17 readings or writings of M × N elements and a dozen launches. Kernels that compute the mask
    do not need them, so they run at any size and, in 16 bits, at any rank. In float32 they multiply without tensor
    cores, with 10·r operations per element; at rank 64 these take as long as the 17 passes, 20 ps on an H100. The limit
    is half of that rank.
    """
    if x.device.type != "cpu" and x.dtype.itemsize > 2 and rank > MOST_MASKED_WIDE_RANK:
        return f"at rank {rank} products in {x.dtype} take as long as drawing a mask and multiplying by it"
    return None


def _measured(kernel: str, operand: Tensor, compute: torch.dtype, **sizes: int) -> bool | None:
    """The answer of `optimized.kernels.tuned.wins` for the operand's device."""
    if not operand.is_cuda:
        return None
    from optimized.kernels.tuned import wins

    return wins(kernel, torch.cuda.get_device_name(operand.device), compute, **sizes)


def _why_not_described(x: Tensor, weight: Tensor) -> str | None:
    """The reason why tensor descriptors cannot hold x [M, K], the weight [N, K] or [K, N], and y [M, N]."""
    if x.dtype == torch.float16:
        return "scale · S is rounded to 16 bits and may overflow in float16"
    if x.dtype != torch.bfloat16 or weight.dtype != x.dtype:
        return f"products of {x.dtype} and {weight.dtype} are left to cuBLAS"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        return "tensor descriptors need compute capability 9.0"
    stored = weight if weight.stride(1) == 1 else weight.mT
    for name, matrix in (("x", x), ("the weight", stored)):
        if 0 in matrix.shape or not _is_described(matrix):
            return f"{name}, {list(matrix.shape)} of strides {list(matrix.stride())}, has no tensor descriptor"
    return f"rows of y, {weight.shape[0]} elements, have no tensor descriptor" if weight.shape[0] % 8 else None


def _is_described(matrix: Tensor) -> bool:
    """Whether a tensor descriptor can hold the matrix: its rows have unit stride and 16-byte alignment."""
    width = matrix.element_size()
    apart = matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]
    return apart and matrix.stride(0) * width % 16 == 0 and matrix.data_ptr() % 16 == 0
