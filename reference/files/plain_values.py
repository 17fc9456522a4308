"""Exact conversion of nested Python values to JSON and tensors, and back, without pickle."""

import json
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# The mappings that a state may hold; JSON does not distinguish them.
MAPPINGS: dict[str, Any] = {"dict": dict, "Counter": Counter, "OrderedDict": OrderedDict}


def flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Convert a value to JSON, and add its tensors to `tensors` by name.

    Args:
        value: nested None, bool, int, float, str, tensor, list, tuple, dict, Counter and OrderedDict.
        name: the name of the value, for its tensors and for errors.   tensors: changed in place.
    Returns:
        None, bool, int, finite float, str and list unchanged; other values as a dict with one key, their kind.
    Raises:
        ValueError: naming a value of another type.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if type(value) in (list, tuple):
        items = [flatten(item, f"{name}[{i}]", tensors) for i, item in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    kind = type(value).__name__
    if isinstance(value, defaultdict):  # an optimiser's state; its default_factory need not be saved
        kind, value = "dict", dict(value)
    if type(value) is not MAPPINGS.get(kind):
        raise ValueError(f"{name} is a {kind}, {value!r:.80}: expected numbers, strings, tensors, lists and dicts")
    if any(type(key) not in (bool, int, str) for key in value):
        raise ValueError(f"{name} has the keys {list(value)!r:.80}: expected strings and ints")
    return {kind: [[key, flatten(item, f"{name}[{key!r}]", tensors)] for key, item in value.items()]}


def unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `flatten`.

    Raises:
        ValueError: for a value that `flatten` never returns.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [unflatten(item, tensors) for item in value]
    try:
        ((kind, held),) = value.items()
        if kind == "float":
            return float(held)
        if kind == "tensor":
            return tensors[held]
        if kind == "tuple":
            return tuple(unflatten(item, tensors) for item in held)
        return MAPPINGS[kind]({key: unflatten(item, tensors) for key, item in held})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{value!r:.80} is not a value of a checkpoint: {error}") from None


def same(value: Any, other: Any) -> bool:
    """Whether two values that `flatten` accepts are the same, bit for bit, types included."""
    tensors: list[dict[str, Tensor]] = [{}, {}]
    texts = [json.dumps(flatten(v, "", into)) for v, into in zip((value, other), tensors, strict=True)]
    return texts[0] == texts[1] and all(same_bits(tensors[0][name], tensors[1][name]) for name in tensors[0])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    one, two = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(one, two)
