"""What linear layers with remote products must do: the clauses of group `hybrid` by concept."""

from __future__ import annotations

from typing import Any

from conformance.hybrid import computing, copying, effects, naming, products, routing, several
from conformance.specification.clause import checks_of

__all__ = ["computing", "copying", "effects", "naming", "products", "routing", "several", "tests"]


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    return checks_of(products, routing, computing, several, effects, copying, naming)
