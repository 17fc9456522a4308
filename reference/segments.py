"""The two halves of a batch's update on rows sorted into segments, as serving libraries split it."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch_checks import check_ranks, check_rows, check_scale, check_segments, ranks_of
from .linear import widen


def lora_shrink(
    x: Tensor, lora_A: Tensor, segment_ends: Tensor, segment_adapters: Tensor, *, ranks: Tensor | None = None
) -> Tensor:
    """The first half of the update: ``S_i = x_i A_eᵀ``, where e is the adapter of row i's segment.

    Segment j holds the rows from segment_ends[j-1] (0 for the first) up to segment_ends[j]. It may be empty, and
    several segments may have one adapter. SGLang's sgemm_lora_a takes the same (`seg_indptr`, `weight_indices`,
    `lora_ranks`) and, like this function, leaves the scale to the second half; vLLM's lora_shrink takes a permutation
    in place of sorted rows, and one scale for all adapters.

    Args:
        x: [T, K], cast to lora_A's dtype.   lora_A: [L, r, K].
        segment_ends: [G], integers that do not decrease, at most T.   segment_adapters: [G], integers, -1 for none.
        ranks: [L], as in `lora_batched_linear`.
    Returns:
        [T, r] in lora_A's dtype: zeros from an adapter's rank on, and in rows without an adapter, which are those of
        segments with -1 and those past the last segment.
    Raises:
        ValueError: as in `lora_batched_linear`; if the ends decrease or exceed T.
    Source: Chen et al., Punica (2023), SGMV; segments after SGLang's LoRABatchInfo.
    """
    check_rows("x", x, "lora_A", lora_A)
    check_ranks(ranks, *lora_A.shape[:2])
    check_segments(segment_ends, segment_adapters, len(x), len(lora_A))

    S = lora_A.new_zeros(len(x), lora_A.shape[1])
    for rows, adapter, rank in _segments(segment_ends, segment_adapters, ranks_of(lora_A, ranks)):
        product = F.linear(widen(x[rows].to(lora_A.dtype)), widen(lora_A[adapter, :rank])).to(S.dtype)
        S = S.index_add(0, rows, F.pad(product, (0, S.shape[1] - rank)))
    return S


def lora_expand(
    S: Tensor,
    base: Tensor,
    lora_B: Tensor,
    scale: Tensor,
    segment_ends: Tensor,
    segment_adapters: Tensor,
    *,
    ranks: Tensor | None = None,
) -> Tensor:
    """The second half of the update: ``y_i = base_i + scale_e · S_i B_eᵀ``, where e is the adapter of row i's segment.

    The result is a new tensor; vLLM's lora_expand and SGLang's sgemm_lora_b add to the base's output in place.

    Args:
        S: [T, r], cast to lora_B's dtype.   base: [T, N], the base's output.   lora_B: [L, N, r].   scale: [L].
        segment_ends, segment_adapters, ranks: as in `lora_shrink`; S is not read from an adapter's rank on.
    Returns:
        [T, N] in base's dtype; rows without an adapter are those of base, bit for bit.
    Raises:
        ValueError: as in `lora_shrink`.
    Source: Chen et al., Punica (2023), SGMV; one scale for each adapter as in SGLang's sgemm_lora_b.
    """
    check_rows("S", S, "lora_B", lora_B)
    if base.shape != (len(S), lora_B.shape[1]):
        wanted = [len(S), lora_B.shape[1]]
        raise ValueError(
            f"base is {list(base.shape)} but S is {list(S.shape)} and lora_B is {list(lora_B.shape)}: "
            f"it must be {wanted}"
        )
    check_scale(scale, len(lora_B))
    check_ranks(ranks, len(lora_B), lora_B.shape[2])
    check_segments(segment_ends, segment_adapters, len(S), len(lora_B))

    y = widen(base)
    for rows, adapter, rank in _segments(segment_ends, segment_adapters, ranks_of(lora_B.transpose(1, 2), ranks)):
        middle = widen(S[rows, :rank].to(lora_B.dtype))
        update = F.linear(middle, widen(lora_B[adapter, :, :rank])) * scale.detach()[adapter]
        y = y.index_add(0, rows, update.to(y.dtype))
    return y.to(base.dtype)


def _segments(ends: Tensor, adapters: Tensor, ranks: list[int]) -> Iterator[tuple[Tensor, int, int]]:
    """The rows, adapter and rank of each segment that has an adapter."""
    first = 0
    for last, adapter in zip(ends.tolist(), adapters.tolist(), strict=True):
        if adapter >= 0:
            yield torch.arange(first, last, device=ends.device), adapter, ranks[adapter]
        first = last
