"""The layer on a packed base as a function: ``y = x Ŵᵀ + b + scale · (x Aᵀ) Bᵀ``, where nothing of Ŵ's size is kept."""

from typing import Any, Protocol

import torch
from torch import Tensor

from .config import check_dropout
from .linear import autocasting, check_adapter, drop, low_rank_update, widen, without_autocast
from .packed_weight import PackedWeight


class Dequantizable(Protocol):
    """A frozen weight that can compute its numbers: a `PackedWeight`, or a tensor class with ``dequantize``."""

    @property
    def shape(self) -> Any: ...

    def dequantize(self, dtype: torch.dtype) -> Tensor: ...


def lora_packed_linear(
    x: Tensor,
    weight: Dequantizable,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    *,
    compute_dtype: torch.dtype | None = None,
    dropout: float = 0.0,
    dropout_position: str = "post",
    training: bool = False,
) -> Tensor:
    """A linear layer on a packed frozen base with a low-rank update: ``y = x Ŵᵀ + b + scale · (x Aᵀ) Bᵀ``.

    Ŵ = dq(P) are the numbers that the storage P stands for, rounded once to the compute dtype c. The gradients are
    those of `lora_linear` at Ŵ: ``dX = g Ŵ + scale·((g B) A)``. Ŵ gets no gradient. Backward computes Ŵ again from P,
    so that nothing of its size lives between the passes.

    Args:
        x: [*, K], floating point.
        weight: P, which stands for Ŵ [N, K].
        bias: [N] or None; cast to c.
        lora_A: [r, K].   lora_B: [N, r].   Both have one dtype; x is cast to it for the update.
        scale: a number; alpha/r in a layer.
        compute_dtype: c; autocast does not change it. None for autocast's dtype inside a region, otherwise x's.
        dropout, dropout_position, training: as in `lora_linear`.
    Returns:
        [*, N], in x's dtype; in autocast's inside a region if compute_dtype is None. Sums are accumulated in float32
        at least and rounded once.
    Raises:
        ValueError: as in `lora_linear`.
    Source: Dettmers et al., QLoRA (2023), equation 5.
    """
    check_dropout(dropout, dropout_position)
    check_packed_operands(x, weight, bias, lora_A, lora_B)
    pre, post = (dropout, 0.0) if dropout_position == "pre" else (0.0, dropout)
    update = drop(low_rank_update(x, lora_A, lora_B, scale, pre, training), post, training)
    base = packed_product(x, weight, bias, compute_dtype)
    return (base + update.to(base.dtype)).to(output_dtype(x, compute_dtype))


def packed_product(x: Tensor, weight: Dequantizable, bias: Tensor | None, compute_dtype: torch.dtype | None) -> Tensor:
    """The base product ``x Ŵᵀ + b`` of operands in the compute dtype, not yet rounded to 16 bits."""
    c = compute_dtype or output_dtype(x, None)
    with without_autocast(x):
        y: Tensor = PackedProduct.apply(widen(x.to(c)), weight, c, False)  # type: ignore[no-untyped-call]
        return y if bias is None else y + widen(bias.to(c))


def output_dtype(x: Tensor, compute_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of the layer's output: x's, or autocast's inside a region if no compute dtype is set."""
    if compute_dtype is None and autocasting(x) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class PackedProduct(torch.autograd.Function):
    """``t Ŵᵀ``, or ``t Ŵ`` if transposed; each is the other's gradient. Only the storage of Ŵ is saved."""

    @staticmethod
    def forward(t: Tensor, weight: Dequantizable, dtype: torch.dtype, transposed: bool) -> Tensor:
        """The product of t [*, K], or [*, N] if transposed, with Ŵ [N, K] rounded to dtype, in t's dtype."""
        numbers = weight.dequantize(dtype).to(t.dtype)
        return t @ (numbers if transposed else numbers.t())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004 torch's signature
        _, weight, ctx.dtype, ctx.transposed = inputs
        if isinstance(weight, PackedWeight):  # saved as tensors, so that a change in place is noticed
            ctx.names = tuple(weight.fields)
            ctx.save_for_backward(*weight.fields.values())
            ctx.weight = weight.without_fields()
        else:
            ctx.names, ctx.weight = (), weight

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        weight = (
            ctx.weight.with_fields(dict(zip(ctx.names, ctx.saved_tensors, strict=True))) if ctx.names else ctx.weight
        )
        return PackedProduct.apply(g, weight, ctx.dtype, not ctx.transposed), None, None, None  # type: ignore[no-untyped-call]


def check_packed_operands(
    x: Tensor, weight: Dequantizable, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor
) -> None:
    """Refuse operands whose shapes do not chain, naming both sides."""
    check_adapter(x, lora_A, lora_B)
    n, k = weight.shape
    if k != x.shape[-1]:
        raise ValueError(
            f"weight is {[n, k]} but x has {x.shape[-1]} features: it must be [out_features, {x.shape[-1]}]"
        )
    if lora_B.shape[0] != n:
        raise ValueError(f"lora_B is {list(lora_B.shape)} but weight is {[n, k]}: their first dimensions must be equal")
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"bias is {list(bias.shape)} but weight is {[n, k]}: it must be [{n}]")
    if bias is not None and not bias.is_floating_point():
        raise ValueError(f"bias is {bias.dtype}: expected a floating point dtype")
