"""The key of a trial (clause, subject and dtype), and how a test's id says it."""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """What identifies a trial: the id of its clause, its subject, and its dtype."""

    clause: str
    subject: str
    dtype: str


def key_of(nodeid: str) -> Key | None:
    """The key that a test's id contains; None for a test that is no trial."""
    _, bracket, label = nodeid.rpartition("[")
    parts = label.rstrip("]").rsplit("-", 2)
    return Key(parts[0], parts[1], parts[2]) if bracket and len(parts) == 3 else None
