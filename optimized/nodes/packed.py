"""The layer on a packed base as one autograd node, which saves x, x Aᵀ and the storage P, and nothing of Ŵ's size."""

import math
from typing import Any

import torch
from torch import Tensor

import reference
from optimized.dispatch.packed_weight import why_not_dequantize_kernel, why_not_product_kernel, why_not_tiled
from optimized.dropout import Dropout, pack
from optimized.matrices import as_matrix, autocast_dtype, changeable, overreads, unflattened, without_autocast
from optimized.nodes.general import general_backward, general_forward
from optimized.packed.tiled_product import tiled_product
from optimized.packed_weight import numbers_of
from reference.packed_product import PackedProduct, output_dtype


class PackedLoRALinear(torch.autograd.Function):
    """(x, P, b, A, B, scale, c, dropout, interpreted, recompute) → y, with gradients for x, b, A and B.

    Backward: ``T = g B`` once, ``dX = g Ŵ + scale · T A`` summed in place, with Ŵ computed again from P;
    ``dA = scale · Tᵀ x``, ``dB = scale · gᵀ (x Aᵀ)``; dropout masks x, or the g in T and dB.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: reference.PackedWeight,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        compute_dtype: torch.dtype | None,
        drop: Dropout,
        interpreted: bool,
        recompute: bool,
    ) -> Tensor:
        y, S, mask = packed_forward(x, weight, bias, lora_A, lora_B, scale, compute_dtype, drop, interpreted)
        needs_x, _, needs_bias, needs_A, needs_B = ctx.needs_input_grad[:5]
        ctx.scale, ctx.shape, ctx.x_dtype = scale, x.shape, x.dtype
        ctx.drop, ctx.autocast, ctx.interpreted = drop, autocast_dtype(x), interpreted
        ctx.bias_dtype = bias.dtype if needs_bias and bias is not None else None
        ctx.dtype = _product_dtype(x, compute_dtype)
        ctx.names, ctx.weight = tuple(weight.fields), weight.without_fields()
        ctx.save_for_backward(  # P as tensors, so that autograd notices a change in place
            x if needs_A or (needs_B and recompute) else None,
            None,
            lora_A,
            lora_B,
            S if needs_B and not recompute else None,
            pack(mask) if mask is not None and not recompute else None,
            *(weight.fields.values() if needs_x else ()),
        )
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        def base(g: Tensor, fields: list[Tensor]) -> Tensor:
            weight = ctx.weight.with_fields(dict(zip(ctx.names, fields, strict=True)))
            return product_in(g.dtype, g, weight, ctx.dtype, transposed=True, interpreted=ctx.interpreted)

        dX, dbias, dA, dB = general_backward(ctx, g, base)
        return dX, None, dbias, dA, dB, None, None, None, None, None


def packed_forward(
    x: Tensor,
    weight: reference.PackedWeight,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    compute_dtype: torch.dtype | None,
    drop: Dropout,
    interpreted: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y [*, N] in the dtype of the output, S = x Aᵀ and the dropout mask, as in `general_forward`."""
    result, dtype = output_dtype(x, compute_dtype), _product_dtype(x, compute_dtype)

    def base() -> Tensor:
        x2 = as_matrix(x, weight.shape[1])
        return product_in(result, x2, weight, dtype, bias, interpreted=interpreted)

    return general_forward(x, None, None, lora_A, lora_B, scale, drop, base)


def product_in(
    result: torch.dtype,
    t: Tensor,
    weight: reference.PackedWeight,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    *,
    transposed: bool = False,
    interpreted: bool = False,
) -> Tensor:
    """``t Ŵᵀ + b``, or ``t Ŵ`` if transposed, of operands rounded to dtype and in the dtype of the result.

    Where the result is wider or narrower than 16-bit operands, the product is computed in float32, so that it is
    rounded once. With `interpreted`, a CPU may interpret kernels.
    """
    if torch.is_grad_enabled():  # a second derivative
        wide = torch.promote_types(t.dtype, torch.float32)
        return PackedProduct.apply(t.to(wide), weight, dtype, transposed).to(result)  # type: ignore[no-any-return,no-untyped-call]
    plain = dtype == result and not (dtype.itemsize == 2 and overreads(t, t.shape[1]))
    computed = dtype if plain or dtype.itemsize > 2 else torch.float32
    t = t.to(dtype).to(computed) if not transposed else t.to(computed)
    bias = None if bias is None else bias.to(dtype).to(computed)
    if why_not_product_kernel(weight, t, interpreted) is None:
        from optimized import kernels

        y = kernels.packed_linear(t, kernels.storage_of(weight), dtype, bias, transposed)
    elif why_not_dequantize_kernel(weight, interpreted) is not None and why_not_tiled(weight) is None:
        y = changeable(tiled_product(t, weight, dtype, bias, transposed=transposed))
    else:
        numbers = numbers_of(weight, dtype, interpreted).to(computed)
        numbers = numbers if transposed else numbers.t()
        y = changeable(t @ numbers if bias is None else torch.addmm(bias, t, numbers))
    return y.to(result)


class PackedFrozenLinear(torch.autograd.Function):
    """(x, P, b, dtype) → ``x Ŵᵀ + b`` [*, N] in the dtype of the output; only the storage P is saved."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: reference.PackedWeight, bias: Tensor | None, compute_dtype: torch.dtype | None
    ) -> Tensor:
        ctx.dtype, ctx.names, ctx.weight = (
            _product_dtype(x, compute_dtype),
            tuple(weight.fields),
            weight.without_fields(),
        )
        ctx.shape, ctx.x_dtype = x.shape, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(*weight.fields.values())
        return frozen_forward(x, weight, bias, compute_dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight = ctx.weight.with_fields(dict(zip(ctx.names, ctx.saved_tensors, strict=True)))
        needs_x, _, needs_bias, _ = ctx.needs_input_grad
        rows, dX = g.reshape(math.prod(g.shape[:-1]), g.shape[-1]), None
        if needs_x:
            with without_autocast(g):
                dX = product_in(g.dtype, as_matrix(rows, g.shape[-1]), weight, ctx.dtype, transposed=True)
                dX = dX.to(ctx.x_dtype).view(ctx.shape)
        return dX, None, rows.sum(0, dtype=ctx.bias_dtype) if needs_bias else None, None


def frozen_forward(
    x: Tensor, weight: reference.PackedWeight, bias: Tensor | None, compute_dtype: torch.dtype | None
) -> Tensor:
    """``x Ŵᵀ + b`` [*, N] in the dtype of the output."""
    result, dtype = output_dtype(x, compute_dtype), _product_dtype(x, compute_dtype)
    with without_autocast(x):
        y = product_in(result, as_matrix(x, weight.shape[1]), weight, dtype, bias)
    return y if x.dim() == 2 else unflattened(y, x.shape)


def _product_dtype(x: Tensor, compute_dtype: torch.dtype | None) -> torch.dtype:
    return compute_dtype or output_dtype(x, None)
