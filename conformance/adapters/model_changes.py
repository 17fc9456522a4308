"""What a loaded adapter changes in a model, read from the outputs of its layers, so that nothing need be merged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def changes_of(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """The change of every parameter, in float64.

    A linear layer or an embedding is called on the identity, so that nothing needs to be merged. Other parameters are
    read, those of experts after the `merge()` of the modules around them.

    Args:
        before: the model without the adapter.
        after: the model with it; each layer has its name, or a wrapper around it with `base_layer`.
    """
    found: dict[str, Tensor] = {}
    for name, module in before.named_modules():
        dotted = f"{name}." if name else ""
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        read = _read(module, after.get_submodule(name), own)
        found |= {f"{dotted}{key}": read[key].double() - value.double() for key, value in own.items()}
    return found


def _read(module: nn.Module, now: nn.Module, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that a module computes with."""
    if isinstance(module, nn.Embedding):
        return {"weight": now(torch.arange(module.num_embeddings))}
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        stored: Any = module.weight
        turned = isinstance(module, nn.Linear)
        K = stored.shape[1] if turned else stored.shape[0]
        zero, columns = now(torch.zeros(1, K)), now(torch.eye(K))
        weight = columns.double() - zero.double()
        return {"weight": weight.T if turned else weight, "bias": zero[0]}
    return {key: _parameter(now, key) for key in own}


def _parameter(module: Any, key: str) -> Tensor:
    """A parameter inside the wrappers around its module, each merged."""
    inner = module
    while inner is not None:
        if callable(getattr(inner, "merge", None)):
            inner.merge()
        inner = getattr(inner, "base_layer", None)
    while key not in module._parameters:
        module = module.base_layer
    return module._parameters[key]  # type: ignore[no-any-return]
