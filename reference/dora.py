"""DoRA: the adapted weight as a trainable magnitude and a direction for each row."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import check_dropout
from .linear import autocasting, check_operands, drop, low_rank_update, widen, without_autocast


def dora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    magnitude: Tensor,
    *,
    dropout: float = 0.0,
    dropout_position: str = "post",
    training: bool = False,
) -> Tensor:
    """A frozen linear layer with DoRA: ``y = m′ ⊙ (x Wᵀ + s·(x Aᵀ) Bᵀ) + b``, ``m′ = m/‖W + s·B A‖_row``.

    The norm is detached: it is a constant of the backward pass. In training, dropout D acts on the difference
    between the DoRA layer and the base layer, so that p = 1 gives the base layer:

    - pre: ``y = x Wᵀ + b + (m′-1) ⊙ D(x) Wᵀ + m′ ⊙ s·(D(x) Aᵀ) Bᵀ``
    - post: ``y = x Wᵀ + b + D((m′-1) ⊙ x Wᵀ + m′ ⊙ s·(x Aᵀ) Bᵀ)``

    Args:
        x: [*, K].   weight: [N, K], frozen.   bias: [N] or None.   lora_A: [r, K].   lora_B: [N, r].
        scale: s, a number.
        magnitude: m [N], trainable; starts as ‖W‖_row.
        dropout, dropout_position, training: as in `lora_linear`.
    Returns:
        [*, N], in the dtype of the base product.
    Raises:
        ValueError: as in `lora_linear`; for a magnitude that is not [N]; if a row of W + s·B A is zero.
    Source: Liu et al., DoRA (2024), sections 4.1 and 4.3; pre-dropout after PEFT and NeMo Automodel.
    """
    check_operands(x, weight, bias, lora_A, lora_B)
    frozen = widen(weight.detach())

    def product(t: Tensor) -> Tensor:
        return F.linear(widen(t), frozen)

    return dora_output(
        product,
        x,
        weight,
        bias,
        lora_A,
        lora_B,
        scale,
        magnitude,
        dropout=dropout,
        dropout_position=dropout_position,
        training=training,
    )


def dora_output(
    product: Callable[[Tensor], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    magnitude: Tensor,
    *,
    dropout: float,
    dropout_position: str,
    training: bool,
) -> Tensor:
    """`dora_linear` with a base product ``t ↦ t Wᵀ`` that the caller computes, for example on a server.

    Args:
        product: a function from [*, K], possibly widened, to [*, N].
        the rest: as in `dora_linear`.
    """
    check_dropout(dropout, dropout_position)
    if magnitude.shape != weight.shape[:1]:
        raise ValueError(
            f"magnitude is {list(magnitude.shape)} but weight is {list(weight.shape)}: it must be [{weight.shape[0]}]"
        )

    def update(t: Tensor) -> Tensor:
        return low_rank_update(t, lora_A, lora_B, scale).to(base.dtype)

    base = product(x)
    m = widen(magnitude) / row_norm(adapted_weight(weight, lora_A, lora_B, scale))
    b = 0.0 if bias is None else bias
    if not training or dropout == 0.0:
        y = m * (base + update(x)) + b
    elif dropout_position == "pre":
        dropped = drop(widen(x), dropout, training)
        y = base + b + (m - 1) * product(dropped) + m * update(dropped)
    else:
        y = base + b + drop((m - 1) * base + m * update(x), dropout, training)
    return y.to(base.dtype if autocasting(x) else x.dtype)


def dora_weight(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    """The weight of a merged DoRA layer: ``m ⊙ (W + s·B A)/‖W + s·B A‖_row``, [N, K], not yet rounded.

    Raises:
        ValueError: if a row of W + s·B A is zero.
    """
    adapted = adapted_weight(weight, lora_A, lora_B, scale)
    return (widen(magnitude) / row_norm(adapted)).unsqueeze(-1) * adapted


@torch.no_grad()
def adapted_weight(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """``W + s·B A``, [N, K], detached and not rounded to 16 bits."""
    with without_autocast(weight):
        return widen(weight) + widen(lora_B) @ widen(lora_A) * scale


@torch.no_grad()
def row_norm(weight: Tensor) -> Tensor:
    """The length of each row, ``‖W‖_row``: [N, K] → [N], detached and not rounded to 16 bits.

    Raises:
        ValueError: if a row is zero and so has no direction, naming the rows.
    """
    with without_autocast(weight):
        norm: Tensor = torch.linalg.vector_norm(widen(weight), dim=-1)
    zero = [] if norm.is_meta else torch.nonzero(norm == 0).flatten().tolist()
    if zero:
        raise ValueError(f"weight is {list(weight.shape)} and zero in rows {zero}: DoRA needs every row non-zero")
    return norm
