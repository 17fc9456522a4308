"""The key of a trial (clause, subject and dtype), and how to read it from a test's id."""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """The key of a trial: the id of its clause, its subject, and its dtype."""

    clause: str
    subject: str
    dtype: str


def key_of(nodeid: str) -> Key | None:
    """The key in a test's id; None for a test that is not a trial."""
    _, bracket, label = nodeid.rpartition("[")
    parts = label.rstrip("]").rsplit("-", 2)
    return Key(parts[0], parts[1], parts[2]) if bracket and len(parts) == 3 else None
