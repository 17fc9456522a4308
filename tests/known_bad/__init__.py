"""Known-bad twins: implementations with one defect each, and the clause and message that must detect it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conformance.specification.groups import group_of


@dataclass(frozen=True)
class KnownBad:
    """An implementation with one defect.

    Attributes:
        name: `<clause>__<defect>`.
        target: a defective object with the group's public names.
        clause: the clause that must fail.   says: what that clause's message must contain.
        groups: the groups whose clauses judge it; recorded.json holds the clauses that fail.
        dtypes: the dtypes in which it is judged.
        source: the project in which the defect was found, or the mistake behind it.
        module: the module that registers it.
    """

    name: str
    target: Any
    clause: str
    says: str
    groups: tuple[str, ...]
    dtypes: tuple[str, ...]
    source: str = ""
    module: str = ""


REGISTRY: dict[str, KnownBad] = {}


def record(
    defect: str,
    target: Any,
    clause: str,
    *,
    says: str,
    groups: tuple[str, ...] = (),
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    source: str = "",
) -> None:
    """Register a target with one defect as a known-bad twin of a clause; by default the clause's group judges it."""
    name = f"{clause}__{defect}"
    if name in REGISTRY:
        raise ValueError(f"two known-bad twins are named {name}")
    REGISTRY[name] = KnownBad(
        name, target, clause, says, groups or (group_of(clause),), dtypes, source, _being_imported()
    )


def _being_imported() -> str:
    """Return the name of the module whose import registers the twin, however deep the call."""
    frame = sys._getframe()
    while frame.f_code.co_name != "<module>" and frame.f_back is not None:
        frame = frame.f_back
    return str(frame.f_globals["__name__"])


def breaks(*clauses: str, **options: Any) -> Callable[[type], type]:
    """Return a decorator that registers an instance of a class as a known-bad twin of each of these clauses.

    The class is named after the defect. It inherits from a right implementation and overrides one thing.
    """

    def register(kind: type) -> type:
        for clause in clauses:
            record(kind.__name__, kind(), clause, **options)
        return kind

    return register
