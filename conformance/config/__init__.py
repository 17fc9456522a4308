"""What a `PeftConfig` must be: the clauses of group `config` by concept."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from conformance.specification.clause import checks_of

# In reading order, which is also the order of the clauses in SPEC.md.
CONCEPTS = (
    "fields",
    "saving",
    "checking",
)


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    return checks_of(*(import_module(f"conformance.config.{concept}") for concept in CONCEPTS))
