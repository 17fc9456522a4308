"""Known-bad twins of contradictory options: a config that chooses layers in two ways is not refused, or wrongly."""

from __future__ import annotations

from tests.baselines.model import RightMatcher
from tests.known_bad.model.registration import breaks_by_matcher


@breaks_by_matcher("MOD-EXCLUSIVE", "returned int: expected ValueError")
@breaks_by_matcher("MOD-MATCHER-EXCLUSIVE", "expected ValueError")
class LetsExclusionsWin(RightMatcher):
    def check(self) -> None:
        if self.excludes:
            self.targets, self.everything = [], False
        super().check()


@breaks_by_matcher("MOD-EXCLUSIVE", "nor names two of")
class DoesNotSayWhy(RightMatcher):
    def check(self) -> None:
        if self.excludes and (self.targets or self.everything):
            raise ValueError("bad modules")
        super().check()
