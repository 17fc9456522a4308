"""The decorator that registers a layer class that is wrong in some lives as a known-bad twin."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from conformance.numerics.dtypes import FLOAT_DTYPES
from tests.known_bad import record


def twin(clause: str, **options: Any) -> Any:
    """Return a decorator that registers a layer class as a known-bad twin."""

    def register(kind: type) -> type:
        # each dtype begins the quick profile with other lives, so that four dtypes meet every pair of operations
        options.setdefault("dtypes", FLOAT_DTYPES)
        record(kind.__name__, SimpleNamespace(LinearLoRA=kind), clause, **options)
        return kind

    return register


def model_twin(clause: str, **options: Any) -> Any:
    """Return a decorator that registers a target for models as a known-bad twin."""

    def register(kind: type) -> type:
        options.setdefault("dtypes", FLOAT_DTYPES)
        record(kind.__name__, kind(), clause, **options)
        return kind

    return register
