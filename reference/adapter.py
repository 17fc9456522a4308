"""The adapter term alone, with its gradients written out, as a fused kernel computes it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import check_adapter, widen, without_autocast


class LoRATritonFunction(torch.autograd.Function):
    """The adapter term ``y = scale · (x Aᵀ) Bᵀ`` and its closed-form gradients.

    ``LoRATritonFunction.apply(x, lora_A, lora_B, scale, dtype)``: with S = x Aᵀ [*, r] and g the gradient of
    y, ``dX = scale·(g B) A``, ``dA = scale·(g B)ᵀ x``, ``dB = scale·gᵀ S``. All sums are accumulated in
    float32 at least (float64 in float64) and rounded once. Autocast has no effect: dtype is the dtype of the result.
    Source: Hu et al., LoRA (2021); named after NeMo Automodel's function, which computes this in Triton
        kernels.
    """

    @staticmethod
    def forward(x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float, dtype: torch.dtype | None = None) -> Tensor:
        """``scale · (x Aᵀ) Bᵀ``.

        Args:
            x: [*, K], floating point; cast to the adapter's dtype.
            lora_A: [r, K].   lora_B: [N, r].   Both have one dtype; any strides.
            scale: a number.
            dtype: the dtype of the result; None for x's.
        Returns:
            [*, N] in dtype.
        Raises:
            ValueError: if K or r do not chain, naming both shapes, or a dtype does not fit.
        """
        check_adapter(x, lora_A, lora_B)
        with without_autocast(x):
            S = F.linear(widen(x.to(lora_A.dtype)), widen(lora_A))
            return (F.linear(S, widen(lora_B)) * scale).to(dtype or x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004 torch's signature
        """Save the operands for backward, which computes S again."""
        x, lora_A, lora_B, scale, _ = inputs
        ctx.save_for_backward(x, lora_A, lora_B)
        ctx.scale = scale

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """``dX = scale·(g B) A``, ``dA = scale·(g B)ᵀ x``, ``dB = scale·gᵀ (x Aᵀ)`` for g = d_y [*, N].

        Returns:
            (dX [*, K], dA [r, K], dB [N, r], None, None), each in the dtype of its operand, and None where the
            operand needs no gradient. All products are differentiable, so double backward is right too.
        """
        x, lora_A, lora_B = ctx.saved_tensors
        need_x, need_A, need_B = ctx.needs_input_grad[:3]
        with without_autocast(x):
            g, wide_x = d_y.to(widen(lora_A).dtype), widen(x.to(lora_A.dtype))
            A, B = widen(lora_A), widen(lora_B)
            gB = g @ B
            d_x = (gB @ A * ctx.scale).to(x.dtype) if need_x else None
            # "...n,...k->nk" sums the outer product over all leading dimensions, if there are any.
            d_A = (torch.einsum("...r,...k->rk", gB, wide_x) * ctx.scale).to(lora_A.dtype) if need_A else None
            S = F.linear(wide_x, A)
            d_B = (torch.einsum("...n,...r->nr", g, S) * ctx.scale).to(lora_B.dtype) if need_B else None
        return d_x, d_A, d_B, None, None
