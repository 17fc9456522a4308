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
class Calls:
    """Code that a check has run on the target, from which a script can be written.

    Attributes:
        setup: the definitions that the code needs.
        lines: pieces of code in their order, each with the variables that it was given. Of two pieces in a row, the
            first may only judge: its third element is then true, and the rest may not need it.
        asked: the expression that was judged last; empty after an exception.
        said: what its failure means, where it is a condition and not a tensor.
    """

    setup: str
    lines: list[tuple[str, dict[str, Any], bool]] = field(default_factory=list)
    asked: str = ""
    said: str = ""


@dataclass
class Recording:
    """The last operands, layer options, gradient names and expected value of a check; None if the check had none.

    Attributes:
        calls: all code that the check has run on the target, where the check keeps it.
    """

    operands: Operands | None = None
    options: dict[str, Any] = field(default_factory=dict)
    needs: Sequence[str] = ()
    expected: Expected | None = None
    calls: Calls | None = None


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
