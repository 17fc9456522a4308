"""A right layer, gradient norm and styles of tensor parallelism, of which known-bad twins replace one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import reference
from tests.known_bad import record


class Right:
    """An instance is a target; it exposes what the group `distributed` needs."""

    LinearLoRA: Any = reference.LinearLoRA
    clip_grad_norm_: Any = staticmethod(reference.clip_grad_norm_)
    colwise_parallel_lora: Any = staticmethod(reference.colwise_parallel_lora)
    rowwise_parallel_lora: Any = staticmethod(reference.rowwise_parallel_lora)


def distributed_breaks(clause: str, *, says: str) -> Callable[[type], type]:
    """Register a defective layer, or a target with a defect, as a known-bad twin."""

    def register(kind: type) -> type:
        is_layer = issubclass(kind, reference.LinearLoRA)
        target = type(kind.__name__, (Right,), {"LinearLoRA": kind})() if is_layer else kind()
        record(kind.__name__, target, clause, groups=("distributed",), says=says, dtypes=("float32",))
        return kind

    return register


def followed(style: Any, change: Callable[[Any, Any], None]) -> Any:
    """A style that applies another one, and then changes the layer on its mesh."""
    right = style._apply

    def apply(module: Any, mesh: Any) -> Any:
        module = right(module, mesh)
        change(module, mesh)
        return module

    style._apply = apply
    return style
