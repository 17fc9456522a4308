"""Rows that choose their expert as one autograd node, `nodes.grouped`."""

import math

from torch import Tensor

from optimized.dispatch.fused_node import why_not_fused
from optimized.dispatch.padded_rows import why_not_padded
from optimized.dispatch.row_tiles import why_not_tiled
from optimized.dropout import NO_DROPOUT, Dropout
from optimized.groups import Groups
from optimized.nodes.grouped import GroupedLoRALinear
from optimized.nodes.padded import PaddedLoRALinear
from optimized.padded_rows import PaddedRows
from optimized.tiled_linear import tiled_grouped_linear
from reference.config import check_dropout
from reference.grouped_linear import check_grouped, check_index, check_offsets
from reference.grouped_linear import lora_grouped_linear as plain_lora_grouped_linear
from reference.grouped_linear import lora_grouped_linear_sorted as plain_lora_grouped_linear_sorted


def lora_grouped_linear(
    x: Tensor,
    expert_index: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    *,
    dropout: float = 0.0,
    dropout_position: str = "post",
    training: bool = False,
) -> Tensor:
    """``y_i = W_e x_i + b_e + scale · B_e (A_e x_i)``: `reference.lora_grouped_linear`, with its shapes and errors.

    Besides x and the parameters, x Aᵀ, the order of the rows and one mask bit for each element under dropout are saved
    for backward. Triton kernels compute unless `why_not_tiled` gives a reason. ``F.grouped_mm`` or, where
    `why_not_padded` gives none, a batched product then computes the base; a product for each expert does so if
    `why_not_grouped` gives a reason. If `why_not_fused` does, the reference computes. A second derivative raises.
    """
    check_dropout(dropout, dropout_position)
    check_grouped(x, weight, bias, lora_A, lora_B)
    check_index(x, expert_index)
    if why_not_fused(x, weight, bias, lora_A, lora_B):
        drop = {"dropout": dropout, "dropout_position": dropout_position, "training": training}
        return plain_lora_grouped_linear(x, expert_index, weight, bias, lora_A, lora_B, scale, **drop)  # type: ignore[arg-type]
    rate = dropout if training else 0.0
    if not rate and why_not_tiled(x, weight, bias, lora_A, lora_B) is None:
        return tiled_grouped_linear(x, weight, bias, lora_A, lora_B, scale, index=expert_index)
    groups = Groups.of_index(expert_index.reshape(-1), lora_A.shape[0])
    return grouped_linear(x, groups, weight, bias, lora_A, lora_B, scale, rate, dropout_position)


def lora_grouped_linear_sorted(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    *,
    dropout: float = 0.0,
    dropout_position: str = "post",
    training: bool = False,
) -> Tensor:
    """`lora_grouped_linear` for sorted rows: `reference.lora_grouped_linear_sorted`, with its shapes and errors."""
    check_dropout(dropout, dropout_position)
    check_grouped(x, weight, bias, lora_A, lora_B)
    check_offsets(x, offsets, lora_A.shape[0])
    if why_not_fused(x, weight, bias, lora_A, lora_B):
        drop = {"dropout": dropout, "dropout_position": dropout_position, "training": training}
        return plain_lora_grouped_linear_sorted(x, offsets, weight, bias, lora_A, lora_B, scale, **drop)  # type: ignore[arg-type]
    groups, rate = Groups.of_offsets(offsets), dropout if training else 0.0
    return grouped_linear(x, groups, weight, bias, lora_A, lora_B, scale, rate, dropout_position)


def grouped_linear(
    x: Tensor,
    groups: Groups,
    weight: Tensor | None,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    rate: float = 0.0,
    position: str = "post",
    same_bits: bool = False,
) -> Tensor:
    """`lora_grouped_linear` of checked operands, for rows whose order is known, with dropout of probability `rate`.

    With `same_bits` the base product of each expert rounds as `F.linear` does, so that an update of 0 changes no bit.
    """
    if not (rate or same_bits) and groups.order is None and why_not_tiled(x, weight, bias, lora_A, lora_B) is None:
        return tiled_grouped_linear(x, weight, bias, lora_A, lora_B, scale, offsets=groups.offsets)
    if not rate and why_not_padded(groups.ends, scale, x, weight, bias, lora_A, lora_B) is None:
        rows = PaddedRows.of(groups.order, groups.ends, math.prod(x.shape[:-1]))
        return PaddedLoRALinear.apply(x, rows, weight, bias, lora_A, lora_B, scale, same_bits)  # type: ignore[no-any-return,no-untyped-call]
    drop = Dropout.seeded(rate, position) if rate else NO_DROPOUT
    return GroupedLoRALinear.apply(x, groups, weight, bias, lora_A, lora_B, scale, drop)  # type: ignore[no-any-return,no-untyped-call]
