"""Clauses of group `checkpoint`: adapters and training runs on disk."""

from __future__ import annotations

from conformance import checkpoint

globals().update(checkpoint.tests())
