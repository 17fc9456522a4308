"""What a `PeftConfig` must be: the clauses of group `config` by concept."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# In reading order, which is also the order of the clauses in SPEC.md.
CONCEPTS = (
    "fields",
    "saving",
    "checking",
)


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    found: dict[str, Any] = {}
    for concept in CONCEPTS:
        for name, value in vars(import_module(f"conformance.config.{concept}")).items():
            if name.startswith("test_") and hasattr(value, "clause"):
                assert found.setdefault(name, value) is value, f"two tests are named {name}"
    return found
