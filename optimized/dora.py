"""DoRA on the fused layer: one pass over its output applies the magnitudes."""

import torch
from torch import Tensor

from optimized.linear import fused_linear
from reference.dora import dora_linear as plain_dora_linear
from reference.dora import row_norm
from reference.linear import check_operands, widen, without_autocast


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
    """``y = m′ ⊙ (x Wᵀ + s·(x Aᵀ) Bᵀ) + b``, ``m′ = m/‖W + s·B A‖_row``: `reference.dora_linear`.

    Shapes, dtypes and errors are those of the reference. With active dropout the reference also computes, because
    the base product is then needed without the update. The norm is computed from the sum W + s·B A, in float32 at
    least; ``‖W‖² + 2s⟨W, B A⟩ + s²‖B A‖²`` would save a pass but suffers from cancellation.
    """
    if (training and dropout) or magnitude.shape != weight.shape[:1]:
        return plain_dora_linear(
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
    check_operands(x, weight, bias, lora_A, lora_B)
    product = fused_linear(x, weight, None, lora_A, lora_B, scale)
    m = widen(magnitude) / row_norm(_adapted_weight(weight, lora_A, lora_B, scale))
    if bias is None:
        return (m * product).to(product.dtype)
    return torch.addcmul(bias.to(m.dtype), m, product.to(m.dtype)).to(product.dtype)


@torch.no_grad()
def _adapted_weight(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """``W + s·B A`` [N, K], in float32 at least, in one pass."""
    with without_autocast(weight):
        wide = torch.promote_types(torch.promote_types(weight.dtype, lora_A.dtype), torch.float32)
        return torch.addmm(weight.to(wide), lora_B.to(wide), lora_A.to(wide), alpha=scale)
