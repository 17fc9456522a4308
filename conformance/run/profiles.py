"""How much a run spends: the number of cases for each clause, subject and dtype."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.specification.clause import Clause

# By clause: the number, from 0, of the case at which the last of its known-bad twins dies (null where one outlives
# them), and how many twins it has. `python -m tests.support.deaths --measure` writes it.
DEATHS = Path(__file__).with_name("deaths.json")


@dataclass(frozen=True)
class Profile:
    """Numbers of cases for one clause, subject and dtype.

    Attributes:
        volume: the most counted cases in the cpu and gpu lanes, of a clause of weight 1.
        interpreted: the same in the interpreter lane.
        margin: cases beyond the one at which the last of a clause's known-bad twins dies, after which no more are
            spent; None to spend all.
        searches: examples that Hypothesis adds on top (cpu and gpu lanes).   shrinks: attempts at a smaller case; with
            none, the cases beside the failing one are not tried either.
        seed: the first argument of `Space.draw`.
    """

    name: str
    volume: int
    interpreted: int
    margin: int | None = None
    searches: int = 0
    shrinks: int = 150
    seed: int = 0

    def cases(self, clause: Clause, lane: str) -> int:
        """Counted cases for a clause."""
        volume = self.interpreted if lane == "interpreter" else self.volume
        most = max(1, round(volume * clause.weight))
        needed = deaths().get(clause.id)
        if self.margin is None or needed is None:
            return most
        return min(most, needed + self.margin)

    def searched(self, clause: Clause, lane: str) -> int:
        """Examples of Hypothesis for a clause."""
        return 0 if lane == "interpreter" else round(self.searches * clause.weight)


@cache
def deaths() -> dict[str, int]:
    """By clause how many cases all of its known-bad twins take to die; without those that were not measured."""
    found = json.loads(DEATHS.read_text(encoding="utf-8")) if DEATHS.exists() else {}
    return {name: number + 1 for name, (number, _) in found.items() if number is not None}


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", volume=6, interpreted=2, margin=2),
        Profile("default", volume=24, interpreted=4, margin=11),
        Profile("nightly", volume=1000, interpreted=40, searches=200),
    )
}
