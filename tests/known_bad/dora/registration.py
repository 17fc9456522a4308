"""The decorator that registers a defective DoRA layer as a known-bad twin."""

from __future__ import annotations

from typing import Any

from tests.baselines.layer import Layer
from tests.baselines.linear import Right
from tests.known_bad import record


def twin(clause: str, **options: Any) -> Any:
    """Return a decorator that registers a layer class as a known-bad twin."""

    def register(kind: type[Layer]) -> type[Layer]:
        target: Any = Right(kind)
        if hasattr(kind, "reset"):
            target.reset = kind.reset  # resets state shared by a class's layers
        record(kind.__name__, target, clause, **options)
        return kind

    return register
