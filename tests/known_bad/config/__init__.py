"""Known-bad twins of the group config; importing this registers them all."""

from __future__ import annotations

from tests.known_bad.config import checking, fields, saving

__all__ = ["checking", "fields", "saving"]
