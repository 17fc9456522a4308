"""A right implementation in pieces: known-bad twins and correct variants override one of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Right:
    """A target for the groups linear, layer, merge and dora; every formula is one small method.

    Shapes: x [M, K], W [N, K], A [r, K], B [N, r], g [M, N]; `mask` is None or 0 and 1/(1-p) per element.
    `layer` is the module class behind `LinearLoRA`.
    """

    def __init__(self, layer: type[Layer] | None = None) -> None:
        self.layer = layer or Layer

    def base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x Wᵀ + b`."""
        return nn.functional.linear(x, weight, bias)

    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        """`s·(x Aᵀ) Bᵀ`."""
        return (x @ lora_A.T * scale) @ lora_B.T

    def total(self, base: Tensor, update: Tensor) -> Tensor:
        """The sum, in the dtype of the base."""
        return base + update.to(base.dtype)

    def gradient_of_x(
        self,
        g: Tensor,
        weight: Tensor | None,
        g_adapter: Tensor,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
        mask: Tensor | None,
    ) -> Tensor:
        """`g W + s·(g B) A`, the second part through the pre mask."""
        part = (g_adapter @ lora_B) @ lora_A * scale
        if mask is not None:
            part = part * mask
        return part.to(g.dtype) if weight is None else g @ weight + part.to(g.dtype)

    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        """`s·(g B)ᵀ x`."""
        return (g @ lora_B).T @ x * scale

    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        """`s·gᵀ (x Aᵀ)`."""
        return g.T @ (x @ lora_A.T) * scale

    def gradient_of_bias(self, g: Tensor) -> Tensor:
        """`Σ g`."""
        return g.sum(0)

    def mask(self, like: Tensor, p: float) -> Tensor:
        """0 with probability p, else 1/(1-p)."""
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
        """The public function."""
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
        """The adapter term alone, behind `.apply`."""
        return Alone(self)

    def scaling(self, alpha: float, dim: int, use_rslora: bool) -> float:
        """`alpha/dim`, `alpha/√dim` with rsLoRA."""
        return alpha / (math.sqrt(dim) if use_rslora else dim)

    def initialise(self, lora_A: Tensor, lora_B: Tensor, method: str) -> None:
        """A as the method draws it, B = 0."""
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
        """The layer."""
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
        update = right.update(adapter_x, lora_A, lora_B, scale)
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
        right, s = ctx.right, ctx.scale
        g_adapter = g.to(lora_A.dtype) if post is None else g.to(lora_A.dtype) * post
        adapter_x = x.to(lora_A.dtype) if pre is None else x.to(lora_A.dtype) * pre
        needs = ctx.needs_input_grad
        dx = right.gradient_of_x(g, weight, g_adapter, lora_A, lora_B, s, pre) if needs[1] else None
        da = right.gradient_of_lora_A(g_adapter, adapter_x, lora_A, lora_B, s) if needs[4] else None
        db = right.gradient_of_lora_B(g_adapter, adapter_x, lora_A, lora_B, s) if needs[5] else None
        dbias = right.gradient_of_bias(g) if needs[3] else None
        return None, dx, None, dbias, da, db, None, None, None


class Alone:
    """`LoRATritonFunction` of a `Right`."""

    def __init__(self, right: Right) -> None:
        self.right = right

    def apply(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        """The adapter term in `dtype`."""
        return self.right.lora_linear(x, None, None, lora_A, lora_B, scale).to(dtype)


class Layer(nn.Module):
    """The module of a `Right`; merging and DoRA in methods of their own."""

    def __init__(
        self,
        right: Right,
        linear: nn.Linear,
        dim: int,
        alpha: float,
        dropout: float,
        position: str,
        method: str,
        dtype: torch.dtype | None,
        use_rslora: bool,
        use_dora: bool,
    ) -> None:
        super().__init__()
        self.right = right
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.requires_grad_(False)
        kind = dtype or self.weight.dtype
        self.lora_A = nn.Linear(self.in_features, dim, bias=False, dtype=kind)
        self.lora_B = nn.Linear(dim, self.out_features, bias=False, dtype=kind)
        self.dropout, self.position = dropout, position
        self.scale = right.scaling(alpha, dim, use_rslora)
        self.merged, self.use_dora, self.base_weight = False, use_dora, None
        right.initialise(self.lora_A.weight, self.lora_B.weight, method)
        if use_dora:
            self.lora_magnitude = nn.Parameter(self.row_norm(self.weight.detach()).to(kind))
            if not bool((self.lora_magnitude != 0).all()):
                raise ValueError("a row of the weight is zero")

    def row_norm(self, weight: Tensor) -> Tensor:
        """`‖W‖` of each row."""
        return torch.linalg.vector_norm(weight.to(torch.promote_types(weight.dtype, torch.float32)), dim=1)

    def delta(self) -> Tensor:
        """`s·BA`."""
        return self.scale * (self.lora_B.weight @ self.lora_A.weight).to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The adapted output, or the base alone when merged."""
        if self.merged:
            return nn.functional.linear(x, self.weight, self.bias)
        if self.use_dora:
            return self.dora(x)
        return self.right.lora_linear(
            x,
            self.weight,
            self.bias,
            self.lora_A.weight,
            self.lora_B.weight,
            self.scale,
            dropout=self.dropout,
            dropout_position=self.position,
            training=self.training,
        )

    def factor(self) -> Tensor:
        """`m/‖W + s·BA‖`, the norm detached."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        a, b = self.lora_A.weight.detach().to(wide), self.lora_B.weight.detach().to(wide)
        return self.lora_magnitude.to(wide) / self.row_norm(self.weight.to(wide) + self.scale * b @ a)

    def dora_weight(self) -> Tensor:
        """`m′ ⊙ (W + s·BA)`."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        change = self.scale * self.lora_B.weight.to(wide) @ self.lora_A.weight.to(wide)
        return self.factor()[:, None] * (self.weight.to(wide) + change)

    def dropped(self, x: Tensor) -> Tensor:
        """x or an output with the layer's dropout."""
        return nn.functional.dropout(x, self.dropout, self.training)

    def dora(self, x: Tensor) -> Tensor:
        """The output of DoRA, both dropout positions."""
        wide = torch.promote_types(x.dtype, torch.float32)
        base = nn.functional.linear(x.to(wide), self.weight.detach().to(wide))
        a, b, m = self.lora_A.weight.to(wide), self.lora_B.weight.to(wide), self.factor()
        bias = 0.0 if self.bias is None else self.bias.to(wide)
        if not self.training or not self.dropout:
            y = m * (base + self.scale * ((x.to(wide) @ a.T) @ b.T)) + bias
        elif self.position == "pre":
            d = self.dropped(x.to(wide))
            y = base + bias + (m - 1) * (d @ self.weight.to(wide).T) + m * self.scale * ((d @ a.T) @ b.T)
        else:
            y = base + bias + self.dropped((m - 1) * base + m * self.scale * ((x.to(wide) @ a.T) @ b.T))
        return y.to(x.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the weight."""
        if not self.merged:
            self.base_weight = self.weight.detach().clone()
            self.weight.copy_(self.dora_weight() if self.use_dora else self.weight + self.delta())
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take it away again."""
        if self.merged:
            self.weight.copy_(self.base_weight)
            self.merged, self.base_weight = False, None

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The unmerged layer's."""
        found = super().state_dict(*args, **kwargs)
        if self.base_weight is not None:
            found["weight"] = self.base_weight
        return found
