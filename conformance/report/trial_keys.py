"""The key of a trial, clause, subject and dtype, and where it is found."""

from __future__ import annotations

from typing import Any

Key = tuple[str, str, str]  # clause, subject, dtype


def keys(plan: dict[str, Any]) -> list[Key]:
    """The planned trials, in the plan's order."""
    return [
        (clause["id"], trial["subject"], trial["dtype"]) for clause in plan["clauses"] for trial in clause["trials"]
    ]


def key_of(nodeid: str) -> tuple[str, str, str] | None:
    """Clause, subject and dtype from a test's id; None for a test that is no trial."""
    _, bracket, label = nodeid.rpartition("[")
    parts = label.rstrip("]").rsplit("-", 2)
    return (parts[0], parts[1], parts[2]) if bracket and len(parts) == 3 else None
