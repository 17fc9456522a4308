"""A right layer for lives, split into small methods; twins override one of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import reference


class LivedLayer(reference.LinearLoRA):
    """The reference's layer, with a forward pass in parts.

    Attributes:
        kept: what a twin keeps from one call to the next.
    """

    kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """The output; when merged, of the merged weight."""
        if self.merged:
            return F.linear(x, self.weight, self.bias)
        return self.adapted(x, *self.operands())

    def operands(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor, float]:
        """The weight, the bias, lora_A, lora_B and the scale."""
        return self.weight, self.bias, self.lora_A.weight, self.lora_B.weight, self.scale

    def adapted(self, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        """`x Wᵀ + b + s·(x Aᵀ) Bᵀ`."""
        base = F.linear(x, weight, bias)
        if self.training and self.dropout_p == 1.0:
            return base
        return base + self.update(x, A, B, scale).to(base.dtype)

    def update(self, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        """`s·(x Aᵀ) Bᵀ`."""
        return F.linear(F.linear(x.to(A.dtype), A), B) * scale

    def delta(self) -> Tensor:
        """`s·B A` in the weight's dtype."""
        return (self.lora_B.weight @ self.lora_A.weight * self.scale).to(self.weight.dtype)


class LivedNode(torch.autograd.Function):
    """One autograd node of `LivedLayer`, whose backward twins override."""

    @staticmethod
    def forward(ctx: Any, layer: Any, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight, A, B)
        ctx.layer, ctx.scale, ctx.keeps = layer, scale, layer.training and layer.dropout_p == 1.0
        ctx.training = layer.training
        y = x @ weight.T
        return y if ctx.keeps else y + ((x.to(A.dtype) @ A.T) @ B.T * scale).to(y.dtype)

    @classmethod
    def backward(cls, ctx: Any, g: Tensor) -> Any:
        held = ctx.saved_tensors
        x, weight, A, B = cls.saved(ctx, held)
        kinds = held[2].dtype, held[3].dtype
        scale = 0.0 if cls.vanishes(ctx) else cls.scale(ctx)
        wide = torch.promote_types(x.dtype, kinds[0])
        given = x.dtype
        x, g, weight, A, B = (t.to(wide) for t in (x, g, weight, A, B))
        rows, cotangents = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        dx = g @ weight + (g @ B) @ A * scale
        da, db = scale * (cotangents @ B).T @ rows, scale * cotangents.T @ (rows @ A.T)
        return None, dx.to(given), None, da.to(kinds[0]), db.to(kinds[1]), None

    @staticmethod
    def saved(ctx: Any, held: Any) -> Any:
        """The operands that backward uses, by default those of forward."""
        return held

    @staticmethod
    def scale(ctx: Any) -> float:
        """The scale that backward uses."""
        return float(ctx.scale)

    @staticmethod
    def vanishes(ctx: Any) -> bool:
        """Whether dropout has removed the update."""
        return bool(ctx.keeps)
