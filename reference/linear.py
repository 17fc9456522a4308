"""A frozen linear layer with a low-rank update, as a function: the central formula of this package."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import check_dropout


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
    """A frozen linear layer with a low-rank update: ``y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ``.

    Its gradients, for g of y's shape: ``dX = g W + scale·((g B) A)``, ``dA = scale·(g B)ᵀ x``,
    ``dB = scale·gᵀ (x Aᵀ)``, each in the dtype of its operand; ``db = Σ g`` if the bias requires a
    gradient; W gets no gradient.

    Inside an autocast region too, a call uses the values that lora_A, lora_B and the bias have at that time. Eager
    F.linear would use those of its first call in the region.

    Args:
        x: [*, K], floating point; any number of leading dimensions, possibly empty.
        weight: [N, K] in x's dtype, frozen; None to compute the update alone.
        bias: [N] in x's dtype, or None; None if weight is None.
        lora_A: [r, K].   lora_B: [N, r].   Any strides. Both have one dtype, which may differ from x's: x is
            cast to it for the update, and the update is cast back before the sum.
        scale: a number; alpha/r in a layer.
        dropout: p in [0, 1], the probability of zeroing an element of the adapter path; the other elements are
            divided by 1-p. p = 1 gives the base layer.
        dropout_position: "pre" drops elements of x, "post" elements of the update.
        training: whether dropout acts.
    Returns:
        [*, N], in the dtype of the base product: x's, or autocast's inside an autocast region. Sums are
        accumulated in float32 at least and 16-bit results are rounded once: in float16 and bfloat16, y is finite
        wherever the exact result is finite.
    Raises:
        ValueError: if K, N or r do not chain, naming both shapes; if dtypes do not fit; for a bias without a
            weight; for a dropout outside [0, 1] or an unknown position.
    Source: Hu et al., LoRA (2021), section 4.1; dropout positions after NeMo Automodel.
    """
    check_dropout(dropout, dropout_position)
    check_operands(x, weight, bias, lora_A, lora_B)
    pre, post = (dropout, 0.0) if dropout_position == "pre" else (0.0, dropout)

    update = low_rank_update(x, lora_A, lora_B, scale, pre, training)
    update = drop(update, post, training)
    if weight is None:
        y = update
    else:
        base = F.linear(widen(x), widen(weight.detach()), None if bias is None else cast(bias))
        y = base + update.to(base.dtype)
    return y if autocasting(x) else y.to(x.dtype)


def low_rank_update(
    x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float | Tensor, dropout: float = 0.0, training: bool = False
) -> Tensor:
    """The adapter term ``scale · (D(x) Aᵀ) Bᵀ``, not yet rounded to 16 bits.

    Args:
        x: [*, K], cast to the adapter's dtype.   lora_A: [r, K].   lora_B: [N, r].
        dropout: the probability of D, which acts in training.
    Returns:
        [*, N] in `widen`'s dtype for the adapter, or in autocast's.
    """
    x = drop(widen(x.to(lora_A.dtype)), dropout, training)
    return F.linear(F.linear(x, cast(lora_A)), cast(lora_B)) * scale


def drop(t: Tensor, p: float, training: bool) -> Tensor:
    """Inverted dropout: zero each element with probability p and divide the others by 1-p, in training only."""
    if not training or p == 0.0:
        return t
    if p == 1.0:  # F.dropout multiplies by 0, which would turn inf into NaN
        return torch.where(torch.zeros_like(t, dtype=torch.bool), t, 0.0)
    return F.dropout(t, p, training=True)


def widen(t: Tensor) -> Tensor:
    """The tensor in the dtype of the computation: float32 for 16-bit types, otherwise its own.

    Under autocast the dtype stays, because autocast chooses the dtype of each product, as it does for F.linear.
    """
    return t.float() if t.dtype in {torch.float16, torch.bfloat16} and not autocasting(t) else t


def cast(parameter: Tensor) -> Tensor:
    """A trainable parameter in the dtype of a product: autocast's, or outside autocast `widen`'s.

    Autocast itself casts a parameter once for the whole region, and would go on using the values from before a change
    in place, for example by an optimiser step. This cast is made anew in each call. Like autocast, it leaves float64.
    """
    if not autocasting(parameter) or parameter.dtype == torch.float64:
        return widen(parameter)
    return parameter.to(torch.get_autocast_dtype(parameter.device.type))


def autocasting(t: Tensor) -> bool:
    """Whether an autocast region is open for t's device."""
    kind = t.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def without_autocast(t: Tensor) -> AbstractContextManager[object]:
    """A context that disables autocast on t's device."""
    kind = t.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def check_operands(x: Tensor, weight: Tensor | None, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor) -> None:
    """Refuse operands whose shapes do not chain or whose dtypes do not fit, naming both sides."""
    check_adapter(x, lora_A, lora_B)
    n, k = lora_B.shape[0], x.shape[-1]
    if weight is None:
        if bias is not None:
            raise ValueError(f"bias is {list(bias.shape)} but weight is None: without a weight it must be None")
        return
    if weight.ndim != 2 or weight.shape[1] != k:
        raise ValueError(f"weight is {list(weight.shape)} but x has {k} features: it must be [out_features, {k}]")
    if weight.shape[0] != n:
        raise ValueError(
            f"lora_B is {list(lora_B.shape)} but weight is {list(weight.shape)}: their first dimensions must be equal"
        )
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"bias is {list(bias.shape)} but weight is {list(weight.shape)}: it must be [{n}]")
    for name, operand in (("weight", weight), ("bias", bias)):
        if operand is not None and operand.dtype != x.dtype and not autocasting(x):
            raise ValueError(f"{name} is {operand.dtype} but x is {x.dtype}: outside autocast they must agree")


def check_adapter(x: Tensor, lora_A: Tensor, lora_B: Tensor) -> None:
    """Refuse an x that is not a floating point tensor [*, K], and an adapter that does not chain with it."""
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}: expected a floating point dtype")
    if x.ndim == 0:
        raise ValueError("x is a scalar: expected [*, features], one dimension at least")
    if lora_A.ndim != 2 or lora_A.shape[1] != x.shape[-1]:
        raise ValueError(
            f"lora_A is {list(lora_A.shape)} but x has {x.shape[-1]} features: "
            f"its second dimension must be {x.shape[-1]}"
        )
    if lora_B.ndim != 2 or lora_B.shape[1] != lora_A.shape[0]:
        raise ValueError(
            f"lora_B is {list(lora_B.shape)} but lora_A is {list(lora_A.shape)}: "
            f"its second dimension must be the rank, {lora_A.shape[0]}"
        )
    if lora_A.dtype != lora_B.dtype:
        raise ValueError(f"lora_A is {lora_A.dtype} but lora_B is {lora_B.dtype}: they must agree")
    if not lora_A.is_floating_point():
        raise ValueError(f"lora_A is {lora_A.dtype}: expected a floating point dtype")
