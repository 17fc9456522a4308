"""The control for the findings about libraries: `nn.Linear` with a plain adapter in eager PyTorch.

If this layer failed a clause, the suite would be at fault: `loraspec run conformance.targets.eager`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.targets.wrapped_layer import version_of

CONFORMANCE = {"name": "eager PyTorch", "version": version_of("torch")}


class LinearLoRA(nn.Linear):
    """A plain handwritten layer, ``y = x Wᵀ + b + dropout(scale · (x Aᵀ) Bᵀ)``, with x [*, K], A [r, K], B [N, r].

    Raises:
        ValueError: if the initialisation or the dropout position is unknown.
    """

    def __init__(
        self,
        orig_linear: nn.Linear,
        dim: int = 8,
        alpha: Any = 32,
        dropout: float = 0.0,
        dropout_position: str = "post",
        lora_A_init_method: str = "xavier",
        lora_dtype: torch.dtype | None = None,
        *,
        use_rslora: bool = False,
        use_memory_efficient_lora: bool = False,  # noqa: ARG002  (autograd chooses the saved tensors)
    ) -> None:
        super().__init__(orig_linear.in_features, orig_linear.out_features, orig_linear.bias is not None, device="meta")
        self.weight, self.bias = orig_linear.weight, orig_linear.bias
        self.requires_grad_(False)
        place: Any = {"dtype": lora_dtype or self.weight.dtype, "device": self.weight.device}
        self.lora_A = nn.Linear(self.in_features, dim, bias=False, **place)
        self.lora_B = nn.Linear(dim, self.out_features, bias=False, **place)
        if lora_A_init_method == "xavier":
            nn.init.xavier_normal_(self.lora_A.weight)
        elif lora_A_init_method not in ("uniform", "kaiming"):  # nn.Linear's own initialisation
            raise ValueError(f"lora_A_init_method = {lora_A_init_method!r}: expected xavier, uniform or kaiming")
        nn.init.zeros_(self.lora_B.weight)
        self.scale = alpha / (math.sqrt(dim) if use_rslora else dim)
        if dropout_position not in ("pre", "post"):
            raise ValueError(f"dropout_position = {dropout_position!r}: expected pre or post")
        self.dropout = {dropout_position: dropout}

    def forward(self, x: Tensor) -> Tensor:
        """The formula."""
        base = F.linear(x, self.weight, self.bias)
        x = F.dropout(x.to(self.lora_A.weight.dtype), self.dropout.get("pre", 0.0), self.training)
        update = self.lora_B(self.lora_A(x) * self.scale)
        return base + F.dropout(update, self.dropout.get("post", 0.0), self.training).to(base.dtype)
