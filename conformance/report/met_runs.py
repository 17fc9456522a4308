"""The runs of operations that the lives of several trials have met together, in words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.report.report import Report, ReportedResult

COUNTED = re.compile(r"\d+ of (\d+) (.+) met")  # the message of a trial
Kind = tuple[int, str]  # how many runs are possible, and what they are: `pairs of operations`


def by_kind(results: Iterable[ReportedResult]) -> dict[Kind, int]:
    """The runs that these trials have met together, as bits, for each kind of runs."""
    found: dict[Kind, int] = defaultdict(int)
    for result in results:
        counted = COUNTED.fullmatch(result.message or "")
        if result.met is not None and counted is not None:
            found[int(counted[1]), counted[2]] |= int(result.met, 16)
    return found


def together(results: Iterable[ReportedResult]) -> str | None:
    """What the trials of a clause have met together; None if nothing is counted."""
    found = by_kind(results)
    return "; ".join(f"{met.bit_count()} of {total} {unit} met" for (total, unit), met in found.items()) or None


def lines(report: Report) -> list[str]:
    """One line for each group whose cases are lives. Clauses that count the same runs are counted together."""
    groups: dict[str, dict[Kind, list[str]]] = defaultdict(lambda: defaultdict(list))
    bits: dict[tuple[str, Kind], int] = defaultdict(int)
    for clause in report.clauses:
        for kind, met in by_kind(clause.results).items():
            groups[clause.group][kind].append(clause.id)
            bits[clause.group, kind] |= met
    return [f"{group}: {'; '.join(_parts(group, kinds, bits))}" for group, kinds in groups.items()]


def _parts(group: str, kinds: dict[Kind, list[str]], bits: dict[tuple[str, Kind], int]) -> Iterable[str]:
    first, *others = sorted(kinds, key=lambda kind: -len(kinds[kind]))
    for kind in (first, *others):
        total, unit = kind
        where = "" if kind == first else f" in {', '.join(kinds[kind])}"
        yield f"{unit} met {bits[group, kind].bit_count()} of {total}{where}"
