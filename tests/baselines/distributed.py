"""A right layer, gradient norm and tensor-parallel styles; a known-bad twin replaces one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import reference
from tests.known_bad import record


class Right:
    """A target for the group `distributed`; an instance has the group's public names."""

    LinearLoRA: Any = reference.LinearLoRA
    clip_grad_norm_: Any = staticmethod(reference.clip_grad_norm_)
    colwise_parallel_lora: Any = staticmethod(reference.colwise_parallel_lora)
    rowwise_parallel_lora: Any = staticmethod(reference.rowwise_parallel_lora)
    PeftConfig: Any = reference.PeftConfig
    save_adapter: Any = staticmethod(reference.save_adapter)
    load_adapter: Any = staticmethod(reference.load_adapter)


def distributed_breaks(clause: str, *, says: str) -> Callable[[type], type]:
    """Return a decorator that registers a defective layer or target as a known-bad twin."""

    def register(kind: type) -> type:
        is_layer = issubclass(kind, reference.LinearLoRA)
        target = type(kind.__name__, (Right,), {"LinearLoRA": kind})() if is_layer else kind()
        record(kind.__name__, target, clause, groups=("distributed",), says=says, dtypes=("float32",))
        return kind

    return register


def followed(style: Any, change: Callable[[Any, Any], None]) -> Any:
    """Make a style apply itself and then call `change` on the layer and its mesh."""
    right = style._apply

    def apply(module: Any, mesh: Any) -> Any:
        module = right(module, mesh)
        change(module, mesh)
        return module

    style._apply = apply
    return style
