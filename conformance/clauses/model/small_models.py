"""Small models that receive adapters, and helpers to list adapters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A projection and an MLP: linear layers with and without bias, a norm, a buffer."""

    offset: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.gain = nn.Parameter(torch.ones(width))
        self.register_buffer("offset", torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + torch.tanh(self.q_proj(normed)) * self.gain
        return x + self.fc2(nn.functional.gelu(self.fc1(x + self.offset)))  # type: ignore[no-any-return]


class Toy(nn.Module):
    """Embedding, blocks and a head: linear layers `blocks.<i>.{q_proj,fc1,fc2}` and `head`."""

    def __init__(self, width: int = 6, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


TOY_LINEARS = (*(f"blocks.{i}.{name}" for i in range(2) for name in ("q_proj", "fc1", "fc2")), "head")


class Twice(nn.Module):
    """A model with one linear layer reachable as `first_proj`, `second` and `inner.third`, and a second, `own_proj`."""

    def __init__(self) -> None:
        super().__init__()
        self.first_proj = nn.Linear(4, 4)
        self.second = self.first_proj
        self.inner = nn.Module()
        self.inner.third = self.first_proj
        self.own_proj = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.own_proj(self.second(self.first_proj(x)))  # type: ignore[no-any-return]


class TaggedLinear(nn.Linear):
    """A subclass of nn.Linear with an attribute, a buffer and a method, and nn.Linear's forward."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.tag = "kept"
        self.register_buffer("counts", torch.arange(3.0))

    def tagged(self) -> str:
        """The tag and the number of features."""
        return f"{self.tag} {self.in_features}"


class DoublingLinear(nn.Linear):
    """A subclass with its own forward, `2·(x Wᵀ + b)`, as quantised layers have."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def model_named(names: Iterable[str]) -> nn.Module:
    """A model with an nn.Linear at each of these dotted names, in this order."""
    root = nn.Module()
    for name in names:
        parent = root
        *path, leaf = name.split(".")
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(leaf, nn.Linear(2, 2))
    return root


def adapted(model: nn.Module) -> list[str]:
    """The sorted names of the modules that have an adapter; a shared module appears under each of its names."""
    return sorted(name for name, m in model.named_modules(remove_duplicate=False) if hasattr(m, "lora_A"))


def adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters by name."""
    return {name: p for name, p in model.named_parameters() if is_adapter(name)}


def is_adapter(parameter_name: str) -> bool:
    """Whether a parameter is lora_A, lora_B or lora_magnitude of an adapter, or its .weight or .default.weight."""
    whole = parameter_name.removesuffix(".weight").removesuffix(".default")
    return whole.endswith(("lora_A", "lora_B", "lora_magnitude", "lora_magnitude_vector"))


def contents(model: nn.Module) -> dict[str, Any]:
    """Copies of all parameters and buffers by name."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
