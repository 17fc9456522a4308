"""Known-bad twins: implementations with one defect each, and the clause that must see it, in which words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conformance.specification.groups import group_of


@dataclass(frozen=True)
class KnownBad:
    """One defect.

    Attributes:
        name: `<clause>__<defect>`.
        target: an object exposing the group's public names, with the defect in it.
        clause: the clause that must fail.   says: what that clause's message must contain.
        groups: the groups of clauses it is run against; the set that fails is recorded in recorded.json.
        dtypes: the dtypes it is run in.
        source: the real project in which this defect was found, where it was.
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
    """Register a target with one defect as a known-bad twin of a clause; its own group judges it by default."""
    name = f"{clause}__{defect}"
    if name in REGISTRY:
        raise ValueError(f"two known-bad twins are named {name}")
    REGISTRY[name] = KnownBad(
        name, target, clause, says, groups or (group_of(clause),), dtypes, source, _being_imported()
    )


def _being_imported() -> str:
    """The module whose import registers a twin, through whatever function."""
    frame = sys._getframe()
    while frame.f_code.co_name != "<module>" and frame.f_back is not None:
        frame = frame.f_back
    return str(frame.f_globals["__name__"])


def breaks(*clauses: str, **options: Any) -> Callable[[type], type]:
    """Register a class as a known-bad twin of each of these clauses; an instance of it is the target.

    The class name says the defect; it inherits from a right implementation and overrides one thing.
    """

    def register(kind: type) -> type:
        for clause in clauses:
            record(kind.__name__, kind(), clause, **options)
        return kind

    return register
