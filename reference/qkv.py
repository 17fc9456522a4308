"""The query, key and value projections of attention, each with its own adapter."""

from torch import Tensor

from .projection import Projection, project


def lora_qkv(x: Tensor, q: Projection, k: Projection, v: Projection) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of one x: ``y_p = x W_pᵀ + b_p + scale_p · (x A_pᵀ) B_pᵀ`` for p of q, k and v.

    Their gradients, for g_p of y_p's shape: ``dX = Σ_p g_p W_p + scale_p · (g_p B_p) A_p``, and for each
    projection the other gradients of `lora_linear`, which do not depend on the other projections.

    Args:
        x: [*, K], floating point; any number of leading dimensions, possibly empty.
        q, k, v: (weight [N_p, K], bias [N_p] or None, lora_A [r_p, K], lora_B [N_p, r_p], scale_p) each, the
            operands of `lora_linear` after x. N, r, scale and the adapter's dtype may differ between
            projections (N_k = N_v < N_q is grouped-query attention); without an adapter, lora_A and lora_B are None.
    Returns:
        [*, N_q], [*, N_k] and [*, N_v], in the dtype of `lora_linear`'s output; they do not share memory.
    Raises:
        ValueError: as in `lora_linear`, beginning with the projection's name.
    Source: Hu et al., LoRA (2021), section 4.1, for each; fused as in Unsloth's fast_lora.
    """
    return project(x, q, "q"), project(x, k, "k"), project(x, v, "v")
