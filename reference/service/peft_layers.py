"""PEFT's layers around remote products: adapters that need the weight, or that are merged into it."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn


def check_unmerged(model: nn.Module, remote: Iterable[nn.Module]) -> None:
    """Refuse an adapter that PEFT has merged into a weight whose products run remotely.

    Raises:
        RuntimeError: naming the layer.
    """
    for name, layer in _around(model, remote):
        if getattr(layer, "merged", False):
            raise RuntimeError(
                f"{name} is PEFT's {type(layer).__name__}, merged into a weight that runs remotely: the weight would "
                f"take the adapter to the server, and a server that has the weight would compute without it; unmerge "
                f"it first (unmerge_adapter)"
            )


def check_clearable(model: nn.Module, remote: Iterable[nn.Module]) -> None:
    """Refuse to clear a weight whose row norm PEFT's DoRA needs.

    Raises:
        RuntimeError: naming the layer.
    """
    for name, layer in _around(model, remote):
        if getattr(layer, "lora_magnitude_vector", None):
            raise RuntimeError(
                f"{name} is PEFT's {type(layer).__name__} with DoRA, which needs its weight here: nothing was cleared; "
                f"expected LoRA without use_dora"
            )


def _around(model: nn.Module, remote: Iterable[nn.Module]) -> Iterator[tuple[str, Any]]:
    """PEFT's layers, by name, whose base layer is a remote module or holds one."""
    remote = set(remote)
    for name, module in model.named_modules():
        base = getattr(module, "base_layer", None)
        if hasattr(module, "merged_adapters") and isinstance(base, nn.Module) and not remote.isdisjoint(base.modules()):
            yield name, module
