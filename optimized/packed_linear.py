"""A frozen linear layer whose weight is packed, with the products of this package."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

import reference
from optimized.dispatch.packed_node import why_not_packed
from optimized.nodes.packed import PackedFrozenLinear, frozen_forward
from optimized.packed_weight import PackedWeight, as_fast


class PackedLinear(reference.PackedLinear):
    """`reference.PackedLinear`, whose products multiply Ŵ tile by tile."""

    @property
    def packed_weight(self) -> PackedWeight:
        """As in the reference."""
        return as_fast(super().packed_weight)

    def forward(self, x: Tensor) -> Tensor:
        """As in the reference."""
        weight = self.packed_weight
        if x.ndim == 0 or x.shape[-1] != self.in_features or why_not_packed(weight, x, self.bias):
            return super().forward(x)
        if not torch.is_grad_enabled():  # in inference mode autograd could not save the storage
            return frozen_forward(x, weight, self.bias, self.compute_dtype)
        return PackedFrozenLinear.apply(x, weight, self.bias, self.compute_dtype)  # type: ignore[no-any-return,no-untyped-call]


@functools.wraps(reference.packed_linear)
def packed_linear(linear: nn.Linear, *args: Any, **kwargs: Any) -> PackedLinear:
    """`reference.packed_linear`, signature and defaults included, as a `PackedLinear` of this package."""
    layer: Any = reference.packed_linear(linear, *args, **kwargs)
    layer.__class__ = PackedLinear
    return layer  # type: ignore[no-any-return]
