"""The decorator that registers a layer with a defective merge as a known-bad twin."""

from __future__ import annotations

from typing import Any

from tests.baselines.layer import Layer
from tests.baselines.linear import Right
from tests.known_bad import record


def twin(clause: str, **options: Any) -> Any:
    """Return a decorator that registers a layer class as a known-bad twin."""

    def register(kind: type[Layer]) -> type[Layer]:
        record(kind.__name__, Right(kind), clause, **options)
        return kind

    return register
