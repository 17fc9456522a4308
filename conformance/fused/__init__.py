"""What fused blocks must compute, keep and leave alone: the clauses of group `fused` by concept."""

from __future__ import annotations

from typing import Any

from conformance.fused import activating, backward, effects, forward, further, modes
from conformance.specification.clause import checks_of

__all__ = ["activating", "backward", "effects", "forward", "further", "modes", "tests"]


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    return checks_of(forward, activating, backward, effects, modes, further)
