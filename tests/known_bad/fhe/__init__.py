"""Known-bad twins of the group fhe; importing this registers them all."""

from __future__ import annotations

from tests.known_bad.fhe import (
    backend,
    computing,
    encrypting,
    guarding,
    keeping,
    modes,
    ranging,
    refusing,
    rounding,
    simulating,
    static,
)

__all__ = [
    "backend",
    "computing",
    "encrypting",
    "guarding",
    "keeping",
    "modes",
    "ranging",
    "refusing",
    "rounding",
    "simulating",
    "static",
]
