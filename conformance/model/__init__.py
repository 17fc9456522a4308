"""What patching a linear layer, and a whole model, must do: the clauses of group `model` by concept."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from conformance.specification.clause import checks_of

# In reading order, which is also the order of the clauses in SPEC.md.
CONCEPTS = (
    "keeping",
    "computing",
    "dropping",
    "initialising",
    "refusing",
    "copying",
    "applying",
    "leaving",
    "options",
    "training",
    "choosing",
    "matching",
    "adapting",
    "learning",
)


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    return checks_of(*(import_module(f"conformance.model.{concept}") for concept in CONCEPTS))
