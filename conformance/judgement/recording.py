"""A recording of one check: its operands, the gradients it asked for, and its last comparison."""

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
    """The last operands, layer options, gradient names and expected value of a check; None if the check had none."""

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
    """Add to every active recording."""
    for recorded in _current:
        for name, value in seen.items():
            setattr(recorded, name, value)
