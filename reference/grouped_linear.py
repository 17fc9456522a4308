"""Rows that choose their expert: a LoRA layer for each expert, as one function of all rows."""

import itertools

import torch
from torch import Tensor

from .config import check_dropout
from .linear import check_operands, lora_linear

INDEX_DTYPES = (torch.int64, torch.int32)


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
    """Row i with expert e gives ``y_i = W_e x_i + b_e + scale · B_e (A_e x_i)``.

    Each row is that of `lora_linear` with the operands of its expert, its gradients, dtypes and dropout included;
    each row draws its own mask. A row is absent if its index is below 0 or at least E: it is not read, and its y and
    its dX are exactly 0. The gradients of A_e and B_e are exactly 0 for an expert that no row chooses.

    Args:
        x: [*, K], floating point; any number of leading dimensions, possibly empty.
        expert_index: [*], int64 or int32.
        weight: [E, N, K] in x's dtype, frozen; None to compute the updates alone.
        bias: [E, N] in x's dtype, frozen, or None; None if weight is None.
        lora_A: [E, r, K].   lora_B: [E, N, r].   Any strides, as in `lora_linear`.
        scale, dropout, dropout_position, training: as in `lora_linear`.
    Returns:
        [*, N], in the dtype of `lora_linear`'s output.
    Raises:
        ValueError: if the index is no [*] of integers, if E, K, N or r do not chain, naming both shapes; otherwise as
            in `lora_linear`.
    Source: Hu et al., LoRA (2021), section 4.1, for each expert.
    """
    check_dropout(dropout, dropout_position)
    check_grouped(x, weight, bias, lora_A, lora_B)
    check_index(x, expert_index)
    rows, index = x.reshape(expert_index.numel(), x.shape[-1]), expert_index.reshape(-1)
    chosen, parts = [], []
    for e in range(lora_A.shape[0]):
        own = (index == e).nonzero().flatten()
        W, b = None if weight is None else weight[e], None if bias is None else bias[e].detach()
        y = lora_linear(
            rows[own],
            W,
            b,
            lora_A[e],
            lora_B[e],
            scale,
            dropout=dropout,
            dropout_position=dropout_position,
            training=training,
        )
        chosen.append(own)
        parts.append(y)
    present = torch.cat(parts)
    y = present.new_zeros(len(rows), lora_B.shape[1]).index_copy(0, torch.cat(chosen), present)
    return y.reshape(*x.shape[:-1], lora_B.shape[1])


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
    """`lora_grouped_linear` for rows that are sorted by expert: expert e has the rows from offsets[e-1] to offsets[e].

    Args:
        x: [M, K], sorted by expert; rows from the last offset on are absent.
        offsets: [E], int32 or int64: the end of each expert's rows; the first expert begins at row 0.
        the rest: as in `lora_grouped_linear`.
    Returns:
        [M, N].
    Raises:
        ValueError: if x is no matrix, if the offsets are no [E] of integers, decrease, or lie outside [0, M];
            otherwise as in `lora_grouped_linear`.
    """
    check_grouped(x, weight, bias, lora_A, lora_B)
    check_offsets(x, offsets, lora_A.shape[0])
    index = torch.searchsorted(offsets, torch.arange(len(x), device=x.device, dtype=offsets.dtype), right=True)
    drop = {"dropout": dropout, "dropout_position": dropout_position, "training": training}
    return lora_grouped_linear(x, index, weight, bias, lora_A, lora_B, scale, **drop)  # type: ignore[arg-type]


def check_grouped(x: Tensor, weight: Tensor | None, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor) -> None:
    """Refuse operands of different numbers of experts, or those of an expert that `lora_linear` would refuse."""
    shapes = {"lora_A": (lora_A, "[E, r, K]", 3), "lora_B": (lora_B, "[E, N, r]", 3)}
    shapes |= {} if weight is None else {"weight": (weight, "[E, N, K]", 3)}
    shapes |= {} if bias is None else {"bias": (bias, "[E, N]", 2)}
    for name, (operand, expected, dimensions) in shapes.items():
        if operand.ndim != dimensions or not len(operand):
            raise ValueError(f"{name} is {list(operand.shape)}: expected {expected} with one expert at least")
        if len(operand) != len(lora_A):
            raise ValueError(
                f"{name} is {list(operand.shape)} but lora_A is {list(lora_A.shape)}: "
                f"their first dimensions, the number of experts, must be equal"
            )
    first, its_bias = (None if operand is None else operand[0] for operand in (weight, bias))
    try:
        check_operands(x, first, its_bias, lora_A[0], lora_B[0])
    except ValueError as error:
        raise ValueError(f"of one expert, {error}") from None


def check_index(x: Tensor, expert_index: Tensor) -> None:
    """Refuse an expert_index that is not an integer for each row of x."""
    if expert_index.dtype not in INDEX_DTYPES:
        raise ValueError(f"expert_index is {expert_index.dtype}: expected torch.int64 or torch.int32")
    if expert_index.shape != x.shape[:-1]:
        raise ValueError(
            f"expert_index is {list(expert_index.shape)} but x is {list(x.shape)}: expected {list(x.shape[:-1])}, "
            f"one index for each row"
        )


def check_offsets(x: Tensor, offsets: Tensor, experts: int) -> None:
    """Refuse offsets that are not the ends [E] of consecutive rows of a matrix x."""
    if x.ndim != 2:
        raise ValueError(f"x is {list(x.shape)}: expected [rows, features], sorted by expert")
    if offsets.dtype not in INDEX_DTYPES:
        raise ValueError(f"offsets is {offsets.dtype}: expected torch.int32 or torch.int64")
    if offsets.shape != (experts,):
        raise ValueError(f"offsets is {list(offsets.shape)} but lora_A has {experts} experts: expected [{experts}]")
    ends = [0, *offsets.tolist()]
    for e, (start, end) in enumerate(itertools.pairwise(ends)):
        if end < start:
            raise ValueError(
                f"offsets[{e}] = {end} is below {start}, where the expert's rows begin: they may not decrease"
            )
    if ends[-1] > len(x):
        raise ValueError(f"offsets[{experts - 1}] = {ends[-1]} but x has {len(x)} rows: expected at most that")
