"""What patching a linear layer, and a whole model, must do: the clauses of group `model` by concept."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# In reading order, which is also the order of the clauses in SPEC.md.
CONCEPTS = (
    "keeping",
    "computing",
    "dropping",
    "initialising",
    "refusing",
    "copying",
    "applying",
    "options",
    "training",
    "choosing",
    "matching",
)


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    found: dict[str, Any] = {}
    for concept in CONCEPTS:
        for name, value in vars(import_module(f"conformance.model.{concept}")).items():
            if name.startswith("test_") and hasattr(value, "clause"):
                assert found.setdefault(name, value) is value, f"two tests are named {name}"
    return found
