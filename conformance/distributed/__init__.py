"""What a layer and the gradient norm must do on several ranks: the clauses of group `distributed` by concept."""

from __future__ import annotations

from typing import Any

from conformance.distributed import keeping, measuring, replicating, saving, splitting
from conformance.specification.clause import checks_of

__all__ = ["keeping", "measuring", "replicating", "saving", "splitting", "tests"]


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    return checks_of(replicating, splitting, measuring, saving)
