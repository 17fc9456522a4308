"""Right targets that fuse blocks of an adapted model: they compute projections without calling the layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from tests.baselines.model import RightModel

MLP = ("gate_proj", "up_proj", "down_proj")


def projected(layer: Any, x: Tensor) -> Tensor:
    """Return `x Wᵀ + b + s·(x Aᵀ) Bᵀ` of an adapted layer, without calling it."""
    A, B = layer.lora_A.weight, layer.lora_B.weight
    return linear(x, layer.weight, layer.bias) + linear(linear(x, A) * layer.scale, B)


class FusedMlp(RightModel):
    """The gated MLP of Llama and Qwen as one function of x and the weights of its three layers."""

    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        """Adapt the layers, and fuse every MLP of which all three have an adapter."""
        count = super().apply_lora_to_linear_modules(model, peft_config)
        for module in model.modules():
            layers = [getattr(module, name, None) for name in MLP]
            if all(hasattr(layer, "lora_A") for layer in layers):
                module.forward = lambda x, layers=layers: self.fused(x, *layers)  # type: ignore[assignment]
        return count

    def fused(self, x: Tensor, gate: Any, up: Any, down: Any) -> Tensor:
        """Return the output of the block."""
        return self.project(down, self.activated(self.project(gate, x)) * self.project(up, x))

    def activated(self, e: Tensor) -> Tensor:
        """Return the activation."""
        return silu(e)

    def project(self, layer: Any, x: Tensor) -> Tensor:
        """Return the output of one layer."""
        return projected(layer, x)


class FusedProjections(RightModel):
    """The queries, keys and values of an attention by one product with three weights above each other."""

    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        """Adapt the layers, and fuse the projections of every attention of which all three have an adapter."""
        count = super().apply_lora_to_linear_modules(model, peft_config)
        for module in model.modules():
            if all(hasattr(getattr(module, f"{letter}_proj", None), "lora_A") for letter in "qkv"):
                module.forward = self.around(module)  # type: ignore[assignment]
        return count

    def around(self, attention: Any) -> Any:
        """Return a forward in which parts of one product stand for the three layers."""
        layers = [getattr(attention, f"{letter}_proj") for letter in "qkv"]
        plain = type(attention).forward

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            parts = self.parts(hidden_states, *layers)
            for letter, part in zip("qkv", parts, strict=True):
                setattr(attention, f"{letter}_proj", _Part(part))
            try:
                return plain(attention, hidden_states, *args, **kwargs)
            finally:
                for letter, layer in zip("qkv", layers, strict=True):
                    setattr(attention, f"{letter}_proj", layer)

        return forward

    def parts(self, x: Tensor, *layers: Any) -> tuple[Tensor, ...]:
        """Return the outputs of the three layers."""
        sizes = [layer.out_features for layer in layers]
        ups = torch.block_diag(*(layer.lora_B.weight * layer.scale for layer in layers))
        base = linear(x, torch.cat([layer.weight for layer in layers]))
        y = base + linear(linear(x, torch.cat([layer.lora_A.weight for layer in layers])), ups)
        if layers[0].bias is not None:
            y = y + torch.cat([layer.bias for layer in layers])
        return torch.split(y, sizes, dim=-1)


class _Part(nn.Module):
    """A module that returns a tensor, whatever its input."""

    def __init__(self, part: Tensor) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part
