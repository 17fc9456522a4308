"""Pairs of keys that models share, to save time in clauses that do not judge keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from conformance.target.calls import calling

MADE: dict[Any, Any] = {}


@contextmanager
def known_keys(owner: Any, hybrid: Any) -> Iterator[None]:
    """Give a split model the keys of an earlier model, or store the keys that it makes for the next one.

    A model whose `keys` cannot be assigned makes its own keys.

    Args:
        owner: the target's class or the server that the keys are valid for.
    """
    takes = getattr(getattr(type(hybrid), "keys", None), "fset", None) is not None
    if takes and MADE.get(owner) is not None:
        with calling("assigning keys"):
            hybrid.keys = MADE[owner]
    yield
    if takes:
        MADE[owner] = hybrid.keys
