"""Former ids of clauses: an id keeps its meaning when another clause takes over what it demanded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from conformance.specification import spec_page


@cache
def holders() -> dict[str, str]:
    """The clauses that hold former ids now, by former id, as SPEC.md lists them."""
    try:
        entries = spec_page.read()
    except FileNotFoundError:  # `loraspec spec` is to write it
        return {}
    return {former: entry.id for entry in entries.values() for former in entry.aliases}


def present(name: str) -> str:
    """The id of the clause that holds a former id now; every other name as it is."""
    return holders().get(name, name)


def presents(names: Iterable[str]) -> tuple[str, ...]:
    """Names with present ids in place of former ones, each once."""
    return tuple(dict.fromkeys(map(present, names)))


def present_reasons(reasons: Mapping[str, str]) -> dict[str, str]:
    """The reasons of expected failures by present id; those of several former ids of a clause are joined."""
    found: dict[str, str] = {}
    for name, reason in reasons.items():
        held = present(name)
        found[held] = f"{found[held]}; {reason}" if held in found else reason
    return found


def remarks(names: Iterable[str]) -> list[str]:
    """For each former id of these names, the line that says which clause holds it now."""
    return [f"{name} is part of {present(name)}" for name in names if present(name) != name]
