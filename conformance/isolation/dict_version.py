"""Detection of changes of a dict, by the version counter that each dict has in CPython 3.11 and 3.12 (PEP 509)."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

PLACE = 24  # offset of the counter in a dict, in bytes: the reference count, the type and the length come first


class Version:
    """The version counter of a module's or class's dict: equal numbers mean that the dict has not changed between."""

    def __init__(self, owner: Any) -> None:
        # vars() of a class is a proxy of its dict
        self.held = vars(owner) if isinstance(vars(owner), dict) else gc.get_referents(vars(owner))[0]
        self.counter = ctypes.c_uint64.from_address(id(self.held) + PLACE) if COUNTED else None

    @property
    def number(self) -> int | None:
        """The current count; None if this Python has no counter."""
        return None if self.counter is None else self.counter.value


def _is_counted() -> bool:
    """Whether the number at the counter's offset changes at each write to a dict, and at no read."""
    if sys.implementation.name != "cpython":
        return False
    probe = {"kept": 1}
    counter = ctypes.c_uint64.from_address(id(probe) + PLACE)
    seen = [counter.value]
    probe["kept"] = 2
    seen.append(counter.value)
    probe["more"] = 3
    seen.append(counter.value)
    del probe["more"]
    seen.append(counter.value)
    return len(set(seen)) == len(seen) and probe["kept"] == 2 and counter.value == seen[-1]


COUNTED = _is_counted()
