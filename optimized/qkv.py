"""Query, key and value as one autograd node, `nodes.qkv`."""

from torch import Tensor

from optimized.dispatch.fused_node import why_not_fused
from optimized.nodes.blocks import flat, operands_of
from optimized.nodes.qkv import LoRAQKV
from reference.projection import Projection
from reference.qkv import lora_qkv as plain_lora_qkv


def lora_qkv(x: Tensor, q: Projection, k: Projection, v: Projection) -> tuple[Tensor, Tensor, Tensor]:
    """``y_p = x W_pᵀ + b_p + scale_p · (x A_pᵀ) B_pᵀ`` for q, k and v: `reference.lora_qkv`, with its errors.

    Besides x and the parameters, ``x [A_q; A_k; A_v]ᵀ`` is saved for backward. If `why_not_fused` gives a reason, the
    reference computes.
    """
    projections = operands_of(x, q=q, k=k, v=v)
    if why_not_fused(x, *flat(projections)):
        return plain_lora_qkv(x, q, k, v)
    return LoRAQKV.apply([p.scale for p in projections], x, *flat(projections))  # type: ignore[no-any-return,no-untyped-call]
