"""Which of several right ways a product is computed, by shape and device: what each costs, by a model of bytes."""

import torch
from torch import Tensor

MOST_SWEPT_RANK = 32
CACHED_BYTES = 2**24  # a third of the second-level cache of an H100, 50 MB: other operands pass through it too


def why_not_one_reading(g: Tensor, rank: int, compute: torch.dtype, wanted: bool = False) -> str | None:
    """Why g [M, N] is read twice for T = g · B and dB = gᵀ · S; None when once, for both.

    A reading of g from memory is 2·M·N bytes in 16 bits. One for both products has partial sums instead, written
    and read: at rank 32 some 8·32·M·N·(1/256 + 1/512) = 1.5·M·N bytes, which mostly stay in the cache, and two
    more launches. On the CPU, where Triton's kernels are interpreted, only the rank counts. Where `wanted`, reasons
    of cost do not.
    """
    if rank > MOST_SWEPT_RANK:
        return f"at rank {rank} the partial sums of one reading are as many bytes as g"
    if g.device.type == "cpu":
        return None
    if compute.itemsize > 2:
        return f"products in {compute} take as long as reading g"
    if not wanted and g.numel() * g.element_size() <= CACHED_BYTES:
        return f"g, {g.numel() * g.element_size()} bytes, is in the cache when it is read again"
    return None
