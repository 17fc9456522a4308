"""A right implementation, split into small methods; known-bad twins and correct variants override one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.baselines.layer import Layer


@dataclass(frozen=True)
class UpdateOperands:
    """The operands of the update; x is in the adapter's dtype, after `pre` dropout."""

    x: Tensor
    lora_A: Tensor
    lora_B: Tensor
    scale: float


@dataclass(frozen=True)
class BackwardOperands(UpdateOperands):
    """The operands of the gradients.

    `g` is in the output's dtype; `g_adapter` is in the adapter's dtype, multiplied by the `post` mask. `mask` is the
    `pre` mask.
    """

    g: Tensor
    g_adapter: Tensor
    weight: Tensor | None = None
    mask: Tensor | None = None


class Right:
    """A target for the groups linear, layer, merge and dora; every formula is one small method.

    Shapes: x [M, K], W [N, K], A [r, K], B [N, r], g [M, N]. `mask` is None, or has 0 or 1/(1-p) for each element.
    `layer` is the module class behind `LinearLoRA`.
    """

    def __init__(self, layer: type[Layer] | None = None) -> None:
        self.layer = layer or Layer

    def base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x Wᵀ + b`."""
        return nn.functional.linear(x, weight, bias)

    def update(self, o: UpdateOperands) -> Tensor:
        """`s·(x Aᵀ) Bᵀ`."""
        return (o.x @ o.lora_A.T * o.scale) @ o.lora_B.T

    def total(self, base: Tensor, update: Tensor) -> Tensor:
        """Base plus update, in the dtype of the base."""
        return base + update.to(base.dtype)

    def gradient_of_x(self, o: BackwardOperands) -> Tensor:
        """`g W + s·(g B) A`; the `pre` mask multiplies the second term."""
        part = self.back_through_update(o)
        if o.mask is not None:
            part = part * o.mask
        return part.to(o.g.dtype) if o.weight is None else self.back_through_base(o.g, o.weight) + part.to(o.g.dtype)

    def back_through_base(self, g: Tensor, weight: Tensor) -> Tensor:
        """`g W`."""
        return g @ weight

    def back_through_update(self, o: BackwardOperands) -> Tensor:
        """`s·(g B) A`."""
        return (o.g_adapter @ o.lora_B) @ o.lora_A * o.scale

    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        """`s·(g B)ᵀ x`."""
        return (o.g_adapter @ o.lora_B).T @ o.x * o.scale

    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        """`s·gᵀ (x Aᵀ)`."""
        return o.g_adapter.T @ (o.x @ o.lora_A.T) * o.scale

    def gradient_of_bias(self, g: Tensor) -> Tensor:
        """`Σ g`."""
        return g.sum(0)

    def mask(self, like: Tensor, p: float) -> Tensor:
        """Draw a dropout mask: 0 with probability p, else 1/(1-p)."""
        kept = torch.rand(like.shape, device=like.device) >= p
        return kept.to(like.dtype) / (1 - p) if p < 1 else torch.zeros_like(like)

    def lora_linear(
        self,
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
        """Return `y = x Wᵀ + b + s·(x Aᵀ) Bᵀ`; this is the target's public function."""
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout}: expected a probability")
        if x.shape[-1:] != lora_A.shape[1:] or lora_A.shape[0] != lora_B.shape[1]:
            raise ValueError(f"x {x.shape}, lora_A {lora_A.shape} and lora_B {lora_B.shape} do not chain")
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight, lora_A, lora_B = (None if t is None else t.to(kind) for t in (x, weight, lora_A, lora_B))
            bias = None if bias is None else bias.to(kind)
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            y = Call.apply(
                self,
                rows,
                weight,
                bias,
                lora_A,
                lora_B,
                scale,
                dropout if training else 0.0,
                dropout_position,
            )
        return y.reshape(*x.shape[:-1], lora_B.shape[0])

    @property
    def LoRATritonFunction(self) -> Any:
        """The adapter term without the base; its `.apply` is the public function."""
        return Alone(self)

    def scaling(self, alpha: float, dim: int, use_rslora: bool) -> float:
        """`alpha/dim`, or `alpha/√dim` with rsLoRA."""
        return alpha / (math.sqrt(dim) if use_rslora else dim)

    def initialise(self, lora_A: Tensor, lora_B: Tensor, method: str) -> None:
        """Draw A by the method and set B to 0."""
        if method == "xavier":
            nn.init.xavier_normal_(lora_A)
        else:
            nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))
        nn.init.zeros_(lora_B)

    def LinearLoRA(
        self,
        orig_linear: nn.Linear,
        dim: int = 8,
        alpha: float = 32,
        dropout: float = 0.0,
        dropout_position: str = "post",
        lora_A_init_method: str = "xavier",
        lora_dtype: torch.dtype | None = None,
        *,
        use_rslora: bool = False,
        use_memory_efficient_lora: bool = False,
        use_dora: bool = False,
    ) -> nn.Module:
        """Return an adapted layer over `orig_linear`."""
        layer = self.layer(
            self,
            orig_linear,
            dim,
            alpha,
            dropout,
            dropout_position,
            lora_A_init_method,
            lora_dtype,
            use_rslora,
            use_dora,
        )
        layer.memory_efficient = use_memory_efficient_lora
        return layer


class Call(torch.autograd.Function):
    """One differentiable call of a `Right`, on matrices."""

    @staticmethod
    def forward(
        ctx: Any,
        right: Right,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        p: float,
        position: str,
    ) -> Tensor:
        adapter_x = x.to(lora_A.dtype)
        pre = right.mask(adapter_x, p) if p and position == "pre" else None
        if pre is not None:
            adapter_x = adapter_x * pre
        update = right.update(UpdateOperands(adapter_x, lora_A, lora_B, scale))
        post = right.mask(update, p) if p and position == "post" else None
        if post is not None:
            update = update * post
        ctx.save_for_backward(x, weight, lora_A, lora_B, pre, post)
        ctx.right, ctx.scale = right, scale
        return update.to(x.dtype) if weight is None else right.total(right.base(x, weight, bias), update)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight, lora_A, lora_B, pre, post = ctx.saved_tensors
        right, needs = ctx.right, ctx.needs_input_grad
        g_adapter = g.to(lora_A.dtype) if post is None else g.to(lora_A.dtype) * post
        adapter_x = x.to(lora_A.dtype) if pre is None else x.to(lora_A.dtype) * pre
        o = BackwardOperands(adapter_x, lora_A, lora_B, ctx.scale, g, g_adapter, weight, pre)
        dx = right.gradient_of_x(o) if needs[1] else None
        da = right.gradient_of_lora_A(o) if needs[4] else None
        db = right.gradient_of_lora_B(o) if needs[5] else None
        dbias = right.gradient_of_bias(g) if needs[3] else None
        return None, dx, None, dbias, da, db, None, None, None


class Alone:
    """`LoRATritonFunction` of a `Right`."""

    def __init__(self, right: Right) -> None:
        self.right = right

    def apply(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        """Return the adapter term in `dtype`."""
        return self.right.lora_linear(x, None, None, lora_A, lora_B, scale).to(dtype)
