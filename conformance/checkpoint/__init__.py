"""What a saved adapter and a saved training run must be: the clauses of group `checkpoint` by concept."""

from __future__ import annotations

from typing import Any

from conformance.checkpoint import damaging, describing, keeping, loading, naming, refusing, replacing, resuming, saving
from conformance.specification.clause import checks_of

__all__ = [
    "damaging",
    "describing",
    "keeping",
    "loading",
    "naming",
    "refusing",
    "replacing",
    "resuming",
    "saving",
    "tests",
]


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    return checks_of(saving, naming, describing, loading, keeping, refusing, damaging, replacing, resuming)
