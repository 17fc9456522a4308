"""Checks of the operands of batches whose rows use different adapters: one clear error each."""

from itertools import pairwise

import torch
from torch import Tensor

from .linear import check_operands


def check_batch(
    x: Tensor,
    adapter_index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: Tensor,
    ranks: Tensor | None,
) -> None:
    """Refuse the operands of `lora_batched_linear` that do not fit."""
    check_stack("lora_A", lora_A)
    check_stack("lora_B", lora_B)
    if len(lora_B) != len(lora_A):
        raise ValueError(
            f"lora_B is {list(lora_B.shape)} but lora_A is {list(lora_A.shape)}: "
            f"their first dimensions, the number of adapters, must be equal"
        )
    if weight is None:
        raise ValueError("weight is None: expected [out_features, in_features]")
    one_of_each = (each.new_empty(each.shape[1:], device="meta") for each in (lora_A, lora_B))
    try:
        check_operands(x, weight, bias, *one_of_each)
    except ValueError as error:
        raise ValueError(f"each adapter's {error}" if str(error).startswith("lora_") else str(error)) from None
    check_scale(scale, len(lora_A))
    check_ranks(ranks, *lora_A.shape[:2])
    check_integers("adapter_index", adapter_index)
    if adapter_index.shape != x.shape[:-1]:
        raise ValueError(
            f"adapter_index is {list(adapter_index.shape)} but x is {list(x.shape)}: it must be {list(x.shape[:-1])}"
        )
    check_adapters("adapter_index", adapter_index, len(lora_A))


def check_stack(name: str, operand: Tensor) -> None:
    """Refuse an operand that does not stack the matrices of all adapters."""
    shape = {"lora_A": "[adapters, rank, in_features]", "lora_B": "[adapters, out_features, rank]"}[name]
    if operand.ndim != 3:
        raise ValueError(f"{name} is {list(operand.shape)}: expected {shape}")
    if not operand.is_floating_point():
        raise ValueError(f"{name} is {operand.dtype}: expected a floating point dtype")


def check_rows(name: str, rows: Tensor, operand_name: str, operand: Tensor) -> None:
    """Refuse rows that are no matrix, or whose width is not the last dimension of the stacked operand."""
    check_stack(operand_name, operand)
    if not rows.is_floating_point():
        raise ValueError(f"{name} is {rows.dtype}: expected a floating point dtype")
    width = operand.shape[2]
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(
            f"{name} is {list(rows.shape)} but {operand_name} is {list(operand.shape)}: it must be [rows, {width}]"
        )


def check_scale(scale: Tensor, adapters: int) -> None:
    """Refuse scales that are no floating point tensor with one number for each adapter."""
    if not isinstance(scale, Tensor) or not scale.is_floating_point():
        found = scale.dtype if isinstance(scale, Tensor) else type(scale).__name__
        raise ValueError(f"scale is {found}: expected a floating point tensor [{adapters}]")
    if scale.shape != (adapters,):
        raise ValueError(f"scale is {list(scale.shape)} but there are {adapters} adapters: it must be [{adapters}]")


def check_ranks(ranks: Tensor | None, adapters: int, most: int) -> None:
    """Refuse ranks that are not one integer from 0 to the largest rank for each adapter."""
    if ranks is None:
        return
    check_integers("ranks", ranks)
    if ranks.shape != (adapters,):
        raise ValueError(f"ranks is {list(ranks.shape)} but there are {adapters} adapters: it must be [{adapters}]")
    wrong = (ranks < 0) | (ranks > most)
    if wrong.any():
        place = int(wrong.nonzero()[0])
        raise ValueError(
            f"ranks[{place}] is {int(ranks[place])} but lora_A and lora_B are padded to rank {most}: "
            f"expected 0 to {most}"
        )


def check_integers(name: str, numbers: Tensor) -> None:
    """Refuse anything but a tensor of integers."""
    if not isinstance(numbers, Tensor):
        raise ValueError(f"{name} is of type {type(numbers).__name__}: expected a tensor of integers")
    if numbers.dtype == torch.bool or numbers.is_floating_point() or numbers.is_complex():
        raise ValueError(f"{name} is {numbers.dtype}: expected an integer dtype")


def check_adapters(name: str, index: Tensor, adapters: int) -> None:
    """Refuse the index of an adapter that does not exist; -1 is none."""
    wrong = (index < -1) | (index >= adapters)
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        text = f"[{', '.join(map(str, place))}]" if place else ""
        raise ValueError(
            f"{name}{text} is {int(index[tuple(place)])} but there are {adapters} adapters: "
            f"expected -1 (none) to {adapters - 1}"
        )


def check_segments(segment_ends: Tensor, segment_adapters: Tensor, rows: int, adapters: int) -> None:
    """Refuse segments whose ends decrease or exceed the rows, or whose adapters do not exist."""
    check_integers("segment_ends", segment_ends)
    check_integers("segment_adapters", segment_adapters)
    if segment_ends.ndim != 1 or segment_adapters.shape != segment_ends.shape:
        raise ValueError(
            f"segment_adapters is {list(segment_adapters.shape)} but segment_ends is {list(segment_ends.shape)}: "
            f"expected [segments] for both"
        )
    ends = [0, *segment_ends.tolist()]
    for place, (before, end) in enumerate(pairwise(ends)):
        if not before <= end <= rows:
            raise ValueError(
                f"segment_ends[{place}] is {end}: expected {before} (where the segment begins) to {rows} (all rows)"
            )
    check_adapters("segment_adapters", segment_adapters, adapters)


def ranks_of(lora_A: Tensor, ranks: Tensor | None) -> list[int]:
    """The rank of each adapter of lora_A [L, r, K]."""
    adapters, rank = lora_A.shape[:2]
    return [rank] * adapters if ranks is None else [int(each) for each in ranks.tolist()]
