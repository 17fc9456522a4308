"""What one training step, and replacing a model's linear layers, must do: group `training` by concept."""

from __future__ import annotations

from typing import Any

from conformance.specification.clause import checks_of
from conformance.training import accumulating, configuring, converting, covering, finding, losing, replacing, stepping

__all__ = [
    "accumulating",
    "configuring",
    "converting",
    "covering",
    "finding",
    "losing",
    "replacing",
    "stepping",
    "tests",
]


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    return checks_of(losing, accumulating, stepping, covering, configuring, finding, replacing, converting)
