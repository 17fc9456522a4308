"""What a model split for FHE must do: the clauses of group `fhe` by concept."""

from __future__ import annotations

from typing import Any

from conformance.fhe import (
    computing,
    encrypting,
    guarding,
    keeping,
    multiplying,
    quantizing,
    ranging,
    refusing,
    simulating,
    static,
    stepping,
)
from conformance.specification.clause import checks_of

__all__ = [
    "computing",
    "encrypting",
    "guarding",
    "keeping",
    "multiplying",
    "quantizing",
    "ranging",
    "refusing",
    "simulating",
    "static",
    "stepping",
    "tests",
]


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    return checks_of(
        computing,
        ranging,
        static,
        simulating,
        encrypting,
        stepping,
        keeping,
        refusing,
        quantizing,
        multiplying,
        guarding,
    )
