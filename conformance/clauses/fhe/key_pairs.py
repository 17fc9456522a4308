"""Pairs of keys made once: a model is given those of an earlier one, in clauses that judge no key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from conformance.target.calls import calling

MADE: dict[Any, Any] = {}


@contextmanager
def known_keys(owner: Any, hybrid: Any) -> Iterator[None]:
    """Let a split model use the keys of an earlier one, and keep those that it makes for the next.

    A model whose `keys` are no property that can be assigned makes its own, as before.

    Args:
        owner: what the keys are good for, a target's class or a server.
    """
    takes = getattr(getattr(type(hybrid), "keys", None), "fset", None) is not None
    if takes and MADE.get(owner) is not None:
        with calling("assigning keys"):
            hybrid.keys = MADE[owner]
    yield
    if takes:
        MADE[owner] = hybrid.keys
