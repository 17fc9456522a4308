"""Merged layers: what they compute and keep, whatever is done with them."""

from __future__ import annotations

from typing import Any

from conformance.merge import keeping, using
from conformance.specification.clause import checks_of

__all__ = ["keeping", "tests", "using"]


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    return checks_of(using, keeping)
