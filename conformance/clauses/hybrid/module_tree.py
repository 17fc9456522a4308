"""Models for clauses about names: trees of modules built from dotted names, and the layers converted in them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from conformance.judgement.outcomes import Inconclusive


class Branch(nn.Module):
    """A module that only contains other modules."""


class Doubling(nn.Linear):
    """A subclass of nn.Linear with its own forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def linear(features: int = 2) -> nn.Linear:
    """A small frozen linear layer."""
    return nn.Linear(features, features).requires_grad_(False)


def conv1d(out_features: int, in_features: int) -> nn.Module:
    """transformers' Conv1D: a linear layer whose weight is [in, out].

    Raises:
        Inconclusive: if transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise Inconclusive("transformers is not installed, so there is no Conv1D to convert")
    pytorch_utils: Any = importlib.import_module("transformers.pytorch_utils")
    module: nn.Module = pytorch_utils.Conv1D(out_features, in_features)
    return module.requires_grad_(False)


def tree(leaves: Mapping[str, nn.Module]) -> nn.Module:
    """A model with these modules at these dotted names, registered in this order."""
    root = Branch()
    for path, leaf in leaves.items():
        *parents, own = path.split(".")
        parent: nn.Module = root
        for name in parents:
            if not hasattr(parent, name):
                parent.add_module(name, Branch())
            parent = getattr(parent, name)
        parent.add_module(own, leaf)
    return root


def is_custom(module: nn.Module) -> bool:
    """Whether a module is a `CustomLinear`, recognised by its two products."""
    return hasattr(module, "forward_module") and hasattr(module, "backward_module")


def converted(model: nn.Module) -> list[str]:
    """The names of all `CustomLinear`s of a model; a module reachable under two names appears twice."""
    return [name for name, module in model.named_modules(remove_duplicate=False) if is_custom(module)]


PLAIN = ("fc", "layers.0.q_proj", "layers.0.mlp.up_proj", "decoder.out", "layers.1.q_proj", "encoder.layer.dense")
# names that a substring search for "lora" or "lm_head" would take for adapters or heads
ALIKE = (
    "explorator",
    "film_head",
    "lora_model.q_proj",
    "block.exploratory.fc",
    "lora_tower.up.fc",
    "lm_headroom.fc",
    "old_lm_head",
    "my_lora_B.fc",
    "lora_Alpha.fc",
    "lora_a.fc",
    "loran",
)
ADAPTERS = (
    "block.q_proj.lora_A",
    "block.q_proj.lora_B",
    "block.k_proj.lora_A.default",
    "block.k_proj.lora_B.default",
    "block.v_proj.lora_dropout.inner",
    "block.o_proj.lora_embedding_A.other",
    "block.o_proj.lora_embedding_B.other",
    "block.up_proj.lora_magnitude",
    "block.up_proj.lora_magnitude_vector.default",
    "block.down_proj.lora_router",
)
