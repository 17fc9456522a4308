"""How much a run spends: the number of cases for each clause, subject and dtype."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """Numbers of cases for one clause, subject and dtype.

    Attributes:
        volume: counted cases in the cpu and gpu lanes.   interpreted: the same in the interpreter lane.
        searches: examples that Hypothesis adds on top (cpu and gpu lanes).   shrinks: attempts at a smaller case; with
            none, the cases beside the failing one are not tried either.
        seed: the first argument of `Space.draw`.
    """

    name: str
    volume: int
    interpreted: int
    searches: int = 0
    shrinks: int = 150
    seed: int = 0

    def cases(self, weight: float, lane: str) -> int:
        """Counted cases for a clause of this weight."""
        volume = self.interpreted if lane == "interpreter" else self.volume
        return max(1, round(volume * weight))

    def searched(self, weight: float, lane: str) -> int:
        """Examples of Hypothesis for a clause of this weight."""
        return 0 if lane == "interpreter" else round(self.searches * weight)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", volume=6, interpreted=2),
        Profile("default", volume=24, interpreted=6, searches=6),
        Profile("nightly", volume=1000, interpreted=40, searches=200),
    )
}
