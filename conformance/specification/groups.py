"""Groups of clauses: the names that a target must expose to claim a group, and the group's description for the pages.

Each folder of `conformance/clauses` that holds a group has one record, `GROUP`, in its `__init__.py`; all tables of
names derive from these records. A folder with the record `SHARED` instead holds clauses that several groups share.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "clauses"
PACKAGE = f"{__package__.partition('.')[0]}.{FOLDER.name}"


@dataclass(frozen=True)
class Group:
    """One group of clauses.

    Attributes:
        prefix: the prefix of its clauses' ids (`LIN` of `LIN-FWD`).
        place: its position among the groups on pages and in reports.
        judged: a description of what its clauses judge, for the pages.
        names: the names that the README shows for the group, as Markdown.
        required: names that a target must expose to claim the group: `f`, `Class.method` or `Class(argument)`.
        subjects: names that the clauses judge; optional ones are judged if the target exposes them.
        alone: subjects whose clauses are judged even if other required names are missing, each with a description.
        positional: for each callable, the number of its positional arguments.
        cpu_only: whether the clauses are judged on the CPU only.
        feature: the feature without which the group is not claimed; empty for none.
        shown: a function that finds, by a few small calls, the conventions that a target's module or object shows.
    """

    prefix: str
    place: int
    judged: str
    names: str
    required: tuple[str, ...]
    subjects: tuple[str, ...]
    alone: Mapping[str, str] = field(default_factory=dict)
    positional: Mapping[str, int] = field(default_factory=dict)
    cpu_only: bool = False
    feature: str = ""
    shown: Callable[[Any], Mapping[str, str]] | None = None


@dataclass(frozen=True)
class Shared:
    """A folder whose clauses belong to several groups; the prefix of a clause's id tells its group.

    Attributes:
        groups: the names of these groups.
    """

    groups: tuple[str, ...]


@cache
def groups() -> dict[str, Group]:
    """Every group by name, in the order of the pages."""
    found = {name: record for name in folders() if isinstance(record := _record(name), Group)}
    return dict(sorted(found.items(), key=lambda item: item[1].place))


@cache
def folders() -> tuple[str, ...]:
    """The names of the folders of clauses, sorted."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules([str(FOLDER)]) if found.ispkg))


def folders_of(group: str) -> tuple[str, ...]:
    """The folders that hold clauses of a group: the shared folders, then its own."""
    shared = [name for name in folders() if isinstance(record := _record(name), Shared) and group in record.groups]
    return (*shared, group)


def group_of(clause: str) -> str:
    """The group of a clause, from the prefix of its id.

    Raises:
        ValueError: if no group has this prefix.
    """
    prefix = clause.partition("-")[0]
    for name, group in groups().items():
        if group.prefix == prefix:
            return name
    expected = ", ".join(group.prefix for group in groups().values())
    raise ValueError(f"clause {clause} has the prefix {prefix!r}: expected one of {expected}")


def _record(folder: str) -> Group | Shared:
    module = importlib.import_module(f"{PACKAGE}.{folder}")
    record: Group | Shared = getattr(module, "GROUP", None) or module.SHARED
    return record
