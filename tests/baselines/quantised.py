"""A right adapted layer on a packed base in small methods, and a target of it; twins override one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import reference
from reference.linear import drop, low_rank_update, widen, without_autocast
from reference.packed_product import output_dtype
from reference.patched_class import patched_class


class Product(torch.autograd.Function):
    """The base product of a layer, whose backward pass is another method of the layer; only the layer is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any, dtype: torch.dtype) -> Tensor:
        ctx.layer, ctx.dtype = layer, dtype
        return layer.product(x, dtype)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.layer.back(gradients[0], ctx.dtype), None, None


class RightLayer(reference.LinearLoRA):
    """An adapted `PackedLinear`."""

    packed_weight: reference.PackedWeight
    compute_dtype: torch.dtype | None

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """Ŵ [N, K]."""
        return self.packed_weight.dequantize(dtype)

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`x Ŵᵀ` in the compute dtype."""
        return x @ self.numbers(dtype).to(x.dtype).T

    def back(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        """`g Ŵ`."""
        return g @ self.numbers(dtype).to(g.dtype)

    def computes(self, x: Tensor) -> torch.dtype:
        """The compute dtype of a call."""
        return self.compute_dtype or output_dtype(x, None)

    def base(self, x: Tensor) -> Tensor:
        """`x Ŵᵀ + b`, not yet rounded to 16 bits."""
        c = self.computes(x)
        with without_autocast(x):
            y: Tensor = Product.apply(widen(x.to(c)), self, c)  # type: ignore[no-untyped-call]
            return y if self.bias is None else y + widen(self.bias.to(c))

    def dropped(self, t: Tensor) -> Tensor:
        """t after dropout."""
        return drop(t, self.dropout_p, self.training)

    def update(self, x: Tensor) -> Tensor:
        """`s·(x Aᵀ) Bᵀ`, with dropout."""
        before = self.dropped(x) if self.dropout_position == "pre" else x
        update = low_rank_update(before, self.lora_A.weight, self.lora_B.weight, self.scale)
        return self.dropped(update) if self.dropout_position == "post" else update

    def forward(self, x: Tensor) -> Tensor:
        base, update = self.base(x), self.update(x)
        return (base + update.to(base.dtype)).to(output_dtype(x, self.compute_dtype))


class RightPacked:
    """A target for the group `quantised`; `kind` is the class of its adapted layers."""

    kind: type[RightLayer] = RightLayer
    packed_linear = staticmethod(reference.packed_linear)
    lora_packed_linear: Callable[..., Tensor] = staticmethod(reference.lora_packed_linear)
    dequantize_weight: Callable[..., Tensor] = staticmethod(reference.dequantize_weight)
    packed_fields: Callable[..., Any] = staticmethod(reference.packed_fields)
    PackedWeight: Any = reference.PackedWeight
    merge_dequantized = staticmethod(reference.merge_dequantized)

    def patch_linear_module(self, orig_linear: nn.Linear, *arguments: Any, **options: Any) -> Any:
        layer: Any = reference.patch_linear_module(orig_linear, *arguments, **options | {"use_triton": False})
        layer.__class__ = patched_class(layer.original_class, self.kind)
        return layer


def target_of(layer: type[RightLayer]) -> type[RightPacked]:
    """The class of a target with this class of layers, and its name."""
    return type(layer.__name__, (RightPacked,), {"kind": layer})
