"""The tensors and the scale of a layer's adapter, in each of the usual forms.

`lora_A` and `lora_B` are modules with a `weight`, or tensors, or a dict with one of them; `lora_magnitude` is [N] or
[N, 1], a tensor or in a module; the scale is `scale`, or `scaling` as in PEFT, or no attribute at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from conformance.target.calls import calling

MAGNITUDE = "lora_magnitude"
ADAPTER = ("lora_A", "lora_B")
SCALES = ("scale", "scaling")


def adapter_of(layer: Any, name: str) -> torch.Tensor:
    """The parameter `lora_A`, `lora_B` or `lora_magnitude` of a layer.

    Raises:
        Violation: if the layer has no such attribute, or reading it raises.
    """
    with calling(f"reading {name}"):
        found: torch.Tensor = _tensor(getattr(layer, name))
    return found


def held_magnitude(layer: Any) -> Any:
    """The `lora_magnitude` of a layer, or `lora_magnitude_vector` as in PEFT; None if it has neither."""
    held = getattr(layer, MAGNITUDE, None)
    held = getattr(layer, f"{MAGNITUDE}_vector", None) if held is None else held
    with calling(f"reading {MAGNITUDE}"):
        return None if held is None or (isinstance(held, nn.ModuleDict) and not held) else _tensor(held)


def only_entry(held: Any) -> Any:
    """What a dictionary of one entry holds by the adapter's name; anything else as it is."""
    if isinstance(held, Mapping | nn.ModuleDict | nn.ParameterDict) and len(held) == 1:
        return next(iter(held.values()))
    return held


def _tensor(held: Any) -> Any:
    tensor = only_entry(held)  # a dictionary is by the adapter's name, as in PEFT
    return tensor if isinstance(tensor, torch.Tensor) else tensor.weight


def base_tensor(layer: Any, name: str, base: nn.Linear) -> torch.Tensor | None:
    """The `weight` or `bias` of a layer: its attribute, or else the parameter of its base layer that it holds.

    Raises:
        AttributeError: if the layer has neither.
    """
    wanted = getattr(base, name)
    if not hasattr(layer, name) and isinstance(wanted, torch.Tensor) and isinstance(layer, nn.Module):
        for parameter in layer.parameters():
            if parameter.shape == wanted.shape and parameter.data_ptr() == wanted.data_ptr():
                return parameter
    if wanted is None and not hasattr(layer, name):
        return None
    found: torch.Tensor | None = getattr(layer, name)
    return found


def names_in_state(state: Mapping[str, Any], held: Mapping[str, torch.Tensor | None]) -> dict[str, str]:
    """By key of a state_dict the name of the tensor in the same memory, else of the one with the same values.

    Args:
        state: the state_dict of a new layer or model; it may hold copies.   held: the tensors of it, by their names.
    """
    tensors = {name: t for name, t in held.items() if t is not None}
    found: dict[str, str] = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            alike = [name for name, t in tensors.items() if t.shape == value.shape]
            there = [name for name in alike if tensors[name].data_ptr() == value.data_ptr()]
            equal = there or [name for name in alike if torch.equal(tensors[name], value)]
            found |= {key: equal[0]} if equal else {}
    return found


def name_in_state(key: str, found: Mapping[str, str]) -> str | None:
    """The name of the tensor under a key: an adapter's that the key states, else as found, else weight or bias."""
    stated = [name for name in (*ADAPTER, MAGNITUDE, "bias", "weight") if name in key]
    of_adapter = bool(stated) and stated[0].startswith("lora_")
    return stated[0] if of_adapter else found.get(key) or next(iter(stated), None)


def scale_of(layer: Any) -> float | None:
    """The scale that a layer states, or None where it states none."""
    for name in SCALES:
        held = only_entry(getattr(layer, name, None))
        if held is not None:
            return float(held)
    return None


def is_magnitude(tensor: torch.Tensor, rows: int) -> bool:
    """Whether a tensor has a magnitude's shape, [N] or [N, 1]."""
    return tuple(tensor.shape) in ((rows,), (rows, 1))


def fill_magnitude(parameter: torch.Tensor, values: torch.Tensor) -> None:
    """Write [N] values into a magnitude of either shape."""
    with torch.no_grad():
        parameter.copy_(values.reshape(parameter.shape))
