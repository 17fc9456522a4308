"""The layer of a right implementation, split into small methods; twins and correct variants override one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """The module of a `Right`; merging and DoRA have their own methods."""

    def __init__(
        self,
        right: Any,  # a `Right`; its module imports this one
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
        """The norm `‖W‖` of each row."""
        return torch.linalg.vector_norm(weight.to(torch.promote_types(weight.dtype, torch.float32)), dim=1)

    def delta(self) -> Tensor:
        """`s·BA`."""
        return self.scale * (self.lora_B.weight @ self.lora_A.weight).to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The adapted output; when merged, the product with the merged weight."""
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
        """`m′ = m/‖W + s·BA‖`; the norm is detached."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        a, b = self.lora_A.weight.detach().to(wide), self.lora_B.weight.detach().to(wide)
        return self.lora_magnitude.to(wide) / self.row_norm(self.weight.to(wide) + self.scale * b @ a)

    def dora_weight(self) -> Tensor:
        """`m′ ⊙ (W + s·BA)`."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        change = self.scale * self.lora_B.weight.to(wide) @ self.lora_A.weight.to(wide)
        return self.factor()[:, None] * (self.weight.to(wide) + change)

    def dropped(self, x: Tensor) -> Tensor:
        """Apply the layer's dropout to x or to an output."""
        return nn.functional.dropout(x, self.dropout, self.training)

    def dora(self, x: Tensor) -> Tensor:
        """The output of DoRA, for both dropout positions."""
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
        """Restore the weight from before the merge."""
        if self.merged:
            self.weight.copy_(self.base_weight)
            self.merged, self.base_weight = False, None

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict of the unmerged layer."""
        found = super().state_dict(*args, **kwargs)
        if self.base_weight is not None:
            found["weight"] = self.base_weight
        return found
