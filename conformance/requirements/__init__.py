"""What any LoRA linear computes, function or layer: requirements shared by the groups `linear` and `layer`."""

from __future__ import annotations

from conformance.requirements import (
    backward,
    dropout,
    effects,
    forward,
    masks,
    modes,
    reach,
    relations,
    sequences,
    surroundings,
)
from conformance.requirements.base import declare

__all__ = [
    "backward",
    "declare",
    "dropout",
    "effects",
    "forward",
    "masks",
    "modes",
    "reach",
    "relations",
    "sequences",
    "surroundings",
]
