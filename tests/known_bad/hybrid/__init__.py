"""Known-bad twins of the group hybrid; importing this registers them all."""

from __future__ import annotations

from tests.known_bad.hybrid import computing, effects, names, products, routing, several, state

__all__ = ["computing", "effects", "names", "products", "routing", "several", "state"]
