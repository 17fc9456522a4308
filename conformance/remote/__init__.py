"""What a split model and its server must do together: the clauses of group `remote` by concept."""

from __future__ import annotations

from typing import Any

from conformance.remote import answering, clearing, crossing, failing
from conformance.specification.clause import checks_of

__all__ = ["answering", "clearing", "crossing", "failing", "tests"]


def tests() -> dict[str, Any]:
    """The test function of every clause in this package, by name."""
    return checks_of(answering, crossing, clearing, failing)
