"""Whether a dict has changed, told by the counter that CPython 3.11 and 3.12 keep in each (PEP 509)."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

PLACE = 24  # bytes from a dict's address to its counter: after the reference count, the type and the length


class Version:
    """The counter of a module's or class's dict: equal numbers mean that nothing was set or deleted in between."""

    def __init__(self, owner: Any) -> None:
        # a class shows its dict through a proxy
        self.held = vars(owner) if isinstance(vars(owner), dict) else gc.get_referents(vars(owner))[0]
        self.counter = ctypes.c_uint64.from_address(id(self.held) + PLACE) if COUNTED else None

    @property
    def number(self) -> int | None:
        """The counter now; None where this Python has none."""
        return None if self.counter is None else self.counter.value


def _is_counted() -> bool:
    """Whether each change of a dict, and no reading of it, shows at the place of the counter."""
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
