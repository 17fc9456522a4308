"""Layers as modules: what they may be asked for after use, and what saves memory."""

from __future__ import annotations

from typing import Any

from conformance.layer import saving, used
from conformance.specification.clause import checks_of

__all__ = ["saving", "tests", "used"]


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    return checks_of(used, saving)
