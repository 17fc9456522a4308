"""Profiles: the number of cases that a run spends on each clause, subject and dtype."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.run.shared_rows import Row, rows_of
from conformance.specification.clause import REGISTRY

if TYPE_CHECKING:
    from conformance.specification.clause import Clause

# For each clause: the number, counted from 0, of the case at which the last of its known-bad twins fails (null if a
# twin passes every case), and the number of its twins. `python -m tests.support.deaths --measure` writes the file.
DEATHS = Path(__file__).with_name("deaths.json")


@dataclass(frozen=True)
class Profile:
    """Numbers of cases for one clause, subject and dtype.

    Attributes:
        volume: the most conclusive cases for a clause of weight 1, in the cpu and gpu lanes.
        interpreted: the same number for the interpreter lane.
        margin: how many cases to draw after the last of a clause's known-bad twins has failed, up to the volume; with
            None all.
        searches: further examples from Hypothesis (cpu and gpu lanes).
        shrinks: attempts to find a smaller failing case; with 0, neighbours of the failing case are not tried either.
        seed: the first argument of `Space.draw`.
        shares: whether the clauses of a group together meet every pair of values of two fields of their cases: each
            takes some rows of its covering array (see `shared_rows`). Of several clauses with the same lives, one
            covers them.
        strength: 2 if each clause meets every pair of values of two fields of its cases, 3 if also every triple (of
            the fields that are not sizes), 0 if neither is demanded, 1 if no covering array is drawn either. Cases in
            the interpreter lane are too few for it.
    """

    name: str
    volume: int
    interpreted: int
    margin: int | None = None
    searches: int = 0
    shrinks: int = 150
    seed: int = 0
    shares: bool = False
    strength: int = 0

    def cases(self, clause: Clause, lane: str, dtype: str = "", *, whole: bool = False) -> int:
        """The number of conclusive cases for a clause in one dtype.

        With a `strength` it is at least the number of the dtype's rows of the covering array, or with `whole` of all
        rows: if a run does not judge some dtype of the clause, each other dtype takes over its rows.
        """
        if shared := self.shared(clause, lane, dtype, whole=whole):
            return max(self.alone(clause, lane), self.needed(clause, lane) + len(shared))
        if self.strength and lane != "interpreter" and not clause.cases.covers:
            rows = clause.cases.rows(self.seed, clause.id, clause.dtypes, self.strength).count(dtype, whole=whole)
            return max(self.alone(clause, lane), rows)
        return self.alone(clause, lane)

    def shared(self, clause: Clause, lane: str, dtype: str, *, whole: bool = False) -> tuple[Row, ...]:
        """The rows of its covering array that the clause takes for its group, after the cases that its twins need."""
        return rows_of(clause, dtype, whole=whole) if self.shares and lane != "interpreter" else ()

    def alone(self, clause: Clause, lane: str) -> int:
        """The number of cases after which all known-bad twins of the clause have failed, and the margin."""
        if clause.cases.covers and lane == "interpreter":
            return max(1, self.interpreted // 2)  # such a case runs dozens of kernels, which take seconds there
        most, known = self._most(clause, lane), deaths().get(clause.id)
        if self.margin is not None and (enough := clause.cases.enough()) is not None:
            if self.shares and known is not None and not _has_most(clause):
                return min(most, known + self.margin)
            return min(most, max(enough, known or 0))
        if self.margin is None or known is None or clause.cases.covers:
            return most
        return max(self.needed(clause, lane), min(most, known + self.margin))

    def needed(self, clause: Clause, lane: str) -> int:
        """The number of cases after which all known-bad twins of the clause have failed; all if it is not known."""
        if lane == "interpreter":
            return 1  # the twins need the measured number on the CPU
        return deaths().get(clause.id, self._most(clause, lane))

    def _most(self, clause: Clause, lane: str) -> int:
        return max(1, round((self.interpreted if lane == "interpreter" else self.volume) * clause.weight))

    def searched(self, clause: Clause, lane: str) -> int:
        """The number of examples from Hypothesis for a clause."""
        return 0 if lane == "interpreter" else round(self.searches * clause.weight)


def _has_most(clause: Clause) -> bool:
    """Whether no other clause with the same space of cases needs more of them for its twins."""
    same = (one for one in REGISTRY.values() if one.cases is clause.cases)
    return all(deaths().get(one.id, 0) <= deaths().get(clause.id, 0) for one in same)


@cache
def deaths() -> dict[str, int]:
    """For each measured clause, the number of cases after which all of its known-bad twins have failed."""
    found = json.loads(DEATHS.read_text(encoding="utf-8")) if DEATHS.exists() else {}
    return {name: number + 1 for name, (number, _) in found.items() if number is not None}


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", volume=6, interpreted=2, margin=2, shares=True),
        Profile("default", volume=24, interpreted=4, margin=6, strength=2),
        Profile("nightly", volume=1000, interpreted=40, searches=200, strength=3),
    )
}
