"""Known-bad twins of the group model; importing this registers them all."""

from __future__ import annotations

from tests.known_bad.model import (
    applying,
    choosing,
    computing,
    copying,
    initialising,
    keeping,
    leaving,
    matching,
    real,
    refusing,
)

__all__ = [
    "applying",
    "choosing",
    "computing",
    "copying",
    "initialising",
    "keeping",
    "leaving",
    "matching",
    "real",
    "refusing",
]
