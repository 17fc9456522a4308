"""Matrix products for a LoRA layer: summed in place, in the fastest safe dtype."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reference import torch_internals

FEW_ELEMENTS = 2**15  # of a matrix on a CPU: up to this size the fixed costs of a product dominate


def changeable(product: Tensor) -> Tensor:
    """A new product, for changes in place: a copy if a dispatch mode, such as selective checkpointing, may keep it."""
    if torch.compiler.is_compiling() or not torch_internals.may_be_dispatched():
        return product
    return product.clone()


def add_product(out: Tensor, left: Tensor, right: Tensor, scale: float, mask: Tensor | None = None) -> None:
    """``out += scale · mask ⊙ (left right)`` in place; left and right may be wider than out."""
    if mask is None and scale != 0.0:  # 0 · NaN needs the separate operations
        if left.dtype == out.dtype:
            out.addmm_(left, right, alpha=scale)
        else:  # adding a wider matrix to out takes longer than widening it, multiplying and rounding
            out.copy_(out.to(left.dtype).addmm_(left, right, alpha=scale))
        return
    summand = left.mm(right)
    if mask is not None and left.dtype == out.dtype:
        out.addcmul_(summand, mask.to(out.dtype), value=scale)
    else:
        out.add_(summand.mul_(scale) if mask is None else summand.mul_(mask.to(summand.dtype)).mul_(scale))


def summed(x: Tensor, wide: Tensor, bias: Tensor | None, S: Tensor, narrow: Tensor, scale: float) -> Tensor:
    """``x wide + bias + scale · S narrow`` in the order of `update_first`.

    S and narrow may be in a wider dtype than x.
    """
    if not update_first(x, bias):
        y = x.mm(wide) if bias is None else torch.addmm(bias, x, wide)
        y = changeable(y)
        add_product(y, S, narrow, scale)
        return y
    y = x.new_empty(x.shape[0], wide.shape[1])
    if S.dtype == y.dtype:
        y.addmm_(S, narrow, beta=0, alpha=scale)
    else:
        y.copy_(S.mm(narrow).mul_(scale))
    return y.addmm_(x, wide)


def update_first(x: Tensor, bias: Tensor | None) -> bool:
    """Whether to write the update first and then add the large product in place, instead of the reverse.

    On a GPU the large product reads y while it computes, which saves one pass over y. With a bias the large product
    comes first, because ``b + scale · S Bᵀ`` may be larger, and so rounded more coarsely, than the partial sums of the
    formula.
    """
    return x.is_cuda and bias is None


def product(left: Tensor, right: Tensor, scale: float, like: Tensor) -> Tensor:
    """``scale · left right`` in the dtype of `like`, a tensor of the same shape whose values are not used."""
    if scale == 0.0:
        return left.mm(right).mul_(scale).to(like.dtype)
    if left.dtype == like.dtype:
        return torch.addmm(like, left, right, beta=0, alpha=scale)
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scale).to(like.dtype)


def product_of_rows(wide: Tensor, narrow: Tensor, scale: float, like: Tensor) -> Tensor:
    """``scale · wideᵀ narrow`` in the dtype of `like`.

    With many rows the transposed product is computed, which is up to 1.4 times faster. With few rows that costs more,
    because autograd copies a transposed gradient into the layout of its parameter.
    """
    if wide.is_cpu and wide.numel() <= FEW_ELEMENTS:
        return product(wide.t(), narrow, scale, like)
    return product(narrow.t(), wide, scale, like.t()).t()


def masked(matrix: Tensor, mask: Tensor | None) -> Tensor:
    """The matrix times its mask; the matrix itself without a mask."""
    return matrix if mask is None else matrix * mask.to(matrix.dtype)


def as_matrix(t: Tensor, columns: int) -> Tensor:
    """t [*, columns] as [M, columns], with strides that a product accepts without a copy."""
    if t.dim() != 2:
        t = t.reshape(math.prod(t.shape[:-1]), columns)
    down, across = t.stride()
    if (across == 1 and down >= t.shape[1]) or (down == 1 and across >= t.shape[0]):
        return t
    return t.contiguous()


def unflattened(y: Tensor, shape: torch.Size) -> Tensor:
    """y [M, N] as [*, N], for an x of `shape` [*, K].

    Autograd does not treat the result as a view; otherwise the consumer could not modify it in place.
    """
    return torch_internals.reshaped(y, (*shape[:-1], y.shape[1]))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b``, in float32 if the 16-bit product would read beyond the rows of x."""
    if x.dtype.itemsize == 2 and overreads(x, x.shape[1]):
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
    return F.linear(x, weight, bias)


def compute_dtype(t: Tensor, lora_A: Tensor, lora_B: Tensor) -> torch.dtype:
    """The wider of t's dtype and the adapter's; on a CPU float32 if 16 bits are slower or unsafe."""
    wider = t.dtype if t.dtype == lora_A.dtype else torch.promote_types(t.dtype, lora_A.dtype)
    if wider.itemsize == 2 and (few_for_16_bits(t) or overreads(t, *lora_A.shape, lora_B.shape[0])):
        return torch.float32
    return wider


def few_for_16_bits(t: Tensor) -> bool:
    """Whether rank-r products of this 16-bit matrix are faster in float32, casts included.

    On a CPU a 16-bit product has a fixed cost of about 35 µs, and a float32 product of 10 µs. For the layer, float32
    was 20 % faster with 2¹⁴ elements, and 20 % slower with 2¹⁶.
    """
    return t.dtype.itemsize == 2 and t.is_cpu and t.numel() <= FEW_ELEMENTS


def overreads(t: Tensor, *inner: int) -> bool:
    """Whether a 16-bit product over inner dimensions of these sizes may put NaN or inf in rows without them.

    On CPUs with AMX the product reads beyond the end of a row of the left matrix, and multiplies the values there by 0.
    Multiples of 32 and even numbers below 32 were measured to be safe with PyTorch 2.13.
    Source: https://github.com/uxlfoundation/oneDNN/issues/5717.
    """
    return t.is_cpu and any(k % 32 and (k > 32 or k % 2) for k in inner)


def autocast_dtype(t: Tensor) -> torch.dtype | None:
    """The autocast dtype on t's device, or None outside autocast."""
    kind = "cpu" if t.is_cpu else t.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def autocast_as(autocast: torch.dtype | None, *operands: Tensor | None) -> tuple[Any, ...]:
    """Cast operands as autocast does for F.linear: all except float64 get its dtype."""
    if autocast is None:
        return operands
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(autocast) for t in operands)


def as_dtype(dtype: torch.dtype, *operands: Tensor | None) -> tuple[Any, ...]:
    """The operands in that dtype; a call of `Tensor.to` takes a microsecond even without a cast."""
    return tuple(t if t is None or t.dtype == dtype else t.to(dtype) for t in operands)


def without_autocast(t: Tensor) -> AbstractContextManager[Any]:
    """A context that disables autocast on t's device."""
    if autocast_dtype(t) is None:
        return nullcontext()
    return torch.autocast(t.device.type, enabled=False)
