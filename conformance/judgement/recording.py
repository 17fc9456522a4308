"""A recording of one check: the operands it bound, the gradients it asked for, what it compared last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conformance.cases.reproducer_marks import left_out

if TYPE_CHECKING:
    from conformance.cases.operands import Operands
    from conformance.judgement.linear_oracle import Expected


@dataclass
class Recording:
    """What was seen, each the last of its kind; None where the check never came to it."""

    operands: Operands | None = None
    options: dict[str, Any] = field(default_factory=dict)
    needs: Sequence[str] = ()
    expected: Expected | None = None


_current: list[Recording] = []


@contextmanager
def recording() -> Iterator[Recording]:
    """Record what happens inside the block."""
    recorded = Recording()
    _current.append(recorded)
    try:
        yield recorded
    finally:
        _current.remove(recorded)


@left_out
def note(**seen: Any) -> None:
    """Add to the recordings that are on; costs nothing where there is none."""
    for recorded in _current:
        for name, value in seen.items():
            setattr(recorded, name, value)
