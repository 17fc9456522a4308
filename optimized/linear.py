"""The LoRA linear layer as one autograd node: the base product and the update, summed in place."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from optimized.dropout import NO_DROPOUT, Dropout
from optimized.general import GeneralLoRALinear, general_backward, general_forward
from optimized.matrices import (
    as_dtype,
    as_matrix,
    few_for_16_bits,
    overreads,
    product,
    product_of_rows,
    summed,
    unflattened,
)
from optimized.plain import plain_apply
from reference.config import check_dropout
from reference.linear import check_operands
from reference.linear import lora_linear as plain_lora_linear


def lora_linear(
    x: Tensor,
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
    """``y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ``: `reference.lora_linear`, its shapes, dtypes and errors.

    Saved for backward beyond x and the parameters: x Aᵀ, and one bit for each element dropout acts on.
    What `why_not_fused` gives a reason for is computed by the reference.
    """
    check_dropout(dropout, dropout_position)
    rate = dropout if training else 0.0
    return fused_linear(x, weight, bias, lora_A, lora_B, scale, rate, dropout_position)


def fused_linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    rate: float = 0.0,
    position: str = "post",
    recompute: bool = False,
) -> Tensor:
    """`lora_linear` with dropout at `rate`, which has been checked.

    With `recompute` nothing beyond x and the parameters is saved: backward computes x Aᵀ again, and draws the
    dropout mask again from its seed.
    """
    if not rate and _is_plain(x, weight, bias, lora_A, lora_B, scale):
        node = plain_apply if x.is_cpu and x.dtype.itemsize > 2 else _apply
        return node(x, weight, bias, lora_A, lora_B, scale, recompute)  # type: ignore[no-any-return]
    check_operands(x, weight, bias, lora_A, lora_B)
    if why_not_fused(x, weight, lora_A, lora_B):
        return plain_lora_linear(
            x, weight, bias, lora_A, lora_B, scale, dropout=rate, dropout_position=position, training=True
        )
    drop = Dropout.seeded(rate, position) if rate else NO_DROPOUT
    if not torch.is_grad_enabled():
        return general_forward(x, weight, bias, lora_A, lora_B, scale, drop)[0]
    return GeneralLoRALinear.apply(x, weight, bias, lora_A, lora_B, scale, drop, recompute)  # type: ignore[no-any-return,no-untyped-call]


def why_not_fused(x: Tensor, *parameters: Tensor | None) -> str | None:
    """Why the reference's formula computes these operands, or None if the fused node does."""
    if torch.compiler.is_compiling():
        return "torch.compile fuses the formula itself"
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return "torch.func and forward-mode differentiation transform the formula"
    for t in (x, *parameters):
        if t is not None and type(t) is not Tensor and type(t) is not torch.nn.Parameter:
            return f"{type(t).__name__} is a tensor subclass with products of its own"
    if not (x.is_cpu or x.is_cuda):
        return f"no generator for dropout masks on {x.device.type}"
    return None


def _is_plain(x: Tensor, weight: Any, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor, scale: float) -> bool:
    """Whether nothing is to be refused, and all products are plain ones in x's dtype.

    In one look, what `check_operands` and `why_not_fused` ask of any operands.
    """
    if is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if not {type(x), type(weight), type(lora_A), type(lora_B)} <= _PLAIN_TENSORS:
        return False
    dtype = x.dtype
    one_dtype = dtype == weight.dtype == lora_A.dtype == lora_B.dtype and dtype.is_floating_point
    if not one_dtype or scale == 0.0 or lora_B.dim() != 2 or not x.dim():
        return False
    (n, r), k = lora_B.shape, x.shape[-1]
    if weight.shape != (n, k) or lora_A.shape != (r, k):
        return False
    if bias is not None and (bias.dtype != dtype or bias.shape != (n,)):
        return False
    here = (x.is_cpu or x.is_cuda) and not torch._C._is_any_autocast_enabled()
    return here and (dtype.itemsize > 2 or not overreads(x, r, k, n))


_PLAIN_TENSORS = frozenset((Tensor, torch.nn.Parameter))


class _LoRALinear(torch.autograd.Function):
    """(x, W, b, A, B, scale, recompute) → y for operands of 16 bits or on a GPU, with gradients for x, b, A and B.

    Backward: ``T = g B`` once, ``dX = g W + scale · T A`` summed in place, ``dA = scale · Tᵀ x``,
    ``dB = scale · gᵀ S`` with ``S = x Aᵀ``. S is all that is saved beyond operands.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        recompute: bool,
    ) -> Tensor:
        x2 = x if x.dim() == 2 and x.is_contiguous() else as_matrix(x, lora_A.shape[1])
        few = x.dtype.itemsize == 2 and few_for_16_bits(x2)
        wide_x, A, B = as_dtype(torch.float32, x2, lora_A, lora_B) if few else (x2, lora_A, lora_B)
        S = F.linear(wide_x, A)
        y = summed(x2, weight.t(), bias, S, B.t(), scale)
        needs_x, _, _, needs_A, needs_B, *_ = ctx.needs_input_grad
        ctx.scale, ctx.shape = scale, x.shape
        ctx.save_for_backward(
            x if needs_A or (needs_B and recompute) else None,
            weight if needs_x else None,
            lora_A,
            lora_B,
            (S.to(x.dtype) if few else S) if needs_B and not recompute else None,
            None,
        )
        return y if x.dim() == 2 else unflattened(y, x.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or torch._C._is_any_autocast_enabled():
            ctx.drop, ctx.autocast, ctx.x_dtype, ctx.bias_dtype = NO_DROPOUT, None, g.dtype, g.dtype
            dX, dbias, dA, dB = general_backward(ctx, g)
            return dX, None, dbias, dA, dB, None, None
        x, weight, lora_A, lora_B, S, _ = ctx.saved_tensors
        needs_x, _, needs_bias, needs_A, needs_B, *_ = ctx.needs_input_grad
        dX = dbias = dA = dB = None
        if not (g.dim() == 2 and g.is_contiguous()):
            g = as_matrix(g, lora_B.shape[0])
        if x is not None and not (x.dim() == 2 and x.is_contiguous()):
            x = as_matrix(x, lora_A.shape[1])
        wide_g, wide_x, A, B = g, x, lora_A, lora_B
        if g.dtype.itemsize == 2 and few_for_16_bits(g):
            wide_g, wide_x, A, B, S = as_dtype(torch.float32, g, x, A, B, S)
        if needs_x or needs_A:
            T = wide_g.mm(B)
        if needs_x:
            dX = summed(g, weight, None, T, A, ctx.scale)
            dX = dX if len(ctx.shape) == 2 else dX.view(ctx.shape)
        if needs_A:
            dA = product(T.t(), wide_x, ctx.scale, lora_A)
        if needs_B:
            S = F.linear(wide_x, A) if S is None else S
            dB = product_of_rows(wide_g, S, ctx.scale, lora_B)
        if needs_bias:
            dbias = g.sum(0)
        return dX, None, dbias, dA, dB, None, None


# What torch.autograd.Function.apply calls once it has looked for torch.func, which takes it as long as a small product.
_apply: Any = super(torch.autograd.Function, _LoRALinear).apply
