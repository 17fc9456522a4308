"""DoRA's oracle, and its clauses about dropout, merging, training, state and side effects."""

from __future__ import annotations

from typing import Any

from conformance.dora import dropping, effects, merging, state, training
from conformance.specification.clause import checks_of

__all__ = ["dropping", "effects", "merging", "state", "tests", "training"]


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    return checks_of(dropping, merging, training, state, effects)
