"""What measuring and clipping gradients must do: the clauses of group `gradnorm` by concept."""

from __future__ import annotations

from typing import Any

from conformance.gradnorm import clipping, effects, measuring, refusing
from conformance.specification.clause import checks_of

__all__ = ["clipping", "effects", "measuring", "refusing", "tests"]


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    return checks_of(measuring, clipping, refusing, effects)
