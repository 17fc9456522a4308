"""The cost of a million cases, and of a profile split over several machines, estimated from the times in a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from conformance.errors import UsageError
from conformance.judgement.result import ANY_DTYPE
from conformance.report.report import Report, ReportedResult
from conformance.report.trial_keys import Key
from conformance.run.profiles import PROFILES, Profile
from conformance.run.shards import share
from conformance.specification.clause import REGISTRY, load_all

MILLION = 1_000_000


@dataclass
class Cost:
    """A number of cases and the seconds that one process took for them, the set-up of each trial included."""

    cases: int = 0
    seconds: float = 0.0

    def add(self, cases: int, seconds: float) -> None:
        """Add cases and their seconds."""
        self.cases += cases
        self.seconds += seconds

    @property
    def hours_per_million(self) -> float:
        """Hours that one process needs for a million such cases; NaN without cases."""
        return self.seconds / self.cases * MILLION / 3600 if self.cases else math.nan


@dataclass(frozen=True)
class Fleet:
    """A profile on several machines.

    Attributes:
        whole: cases and seconds of all shards.   longest: cases and seconds of the slowest shard.
        trial: the slowest trial and its seconds; a trial cannot be split over shards.
    """

    profile: str
    shards: int
    whole: Cost
    longest: Cost
    trial: tuple[Key, float]


def by_group(report: Report) -> dict[tuple[str, str], Cost]:
    """The cost of a report's trials for each group and lane, in the report's order.

    Raises:
        UsageError: if the report has no judged case, or was saved without its times.
    """
    found: dict[tuple[str, str], Cost] = {}
    for clause in report.clauses:
        for result in clause.results:
            cost = found.setdefault((clause.group, result.lane), Cost())
            cost.add(result.cases, _seconds(report, result))
    found = {key: cost for key, cost in found.items() if cost.cases}
    if not found:
        raise UsageError(f"the report on {report.target} has no judged case: expected one of a run")
    return found


def _seconds(report: Report, result: ReportedResult) -> float:
    if result.seconds is None:
        raise UsageError(f"the report on {report.target} has no times: expected the report.json that a run wrote")
    return result.seconds


def fleet(report: Report, profile: str, shards: int) -> Fleet:
    """The cost of a report's trials under a profile, split into shards as --shard does.

    The seconds of a trial are scaled by its number of cases.

    Raises:
        UsageError: for a profile or a clause that this version of the suite does not have, or more shards than trials.
    """
    if report.profile not in PROFILES:
        raise UsageError(f"the report's profile is {report.profile!r}: expected one of {', '.join(PROFILES)}")
    load_all()
    cases: dict[Key, int] = {}
    seconds: dict[Key, float] = {}
    for clause in report.clauses:
        for result in clause.results:
            if not result.cases:
                continue
            key = Key(clause.id, result.subject, result.dtype)
            spent, cases[key] = (
                _cases(PROFILES[name], clause.id, result.lane, result.dtype) for name in (report.profile, profile)
            )
            seconds[key] = _seconds(report, result) * cases[key] / spent
    hands = [_cost(share(cases, f"{number}/{shards}"), cases, seconds) for number in range(1, shards + 1)]
    whole = Cost(sum(hand.cases for hand in hands), sum(hand.seconds for hand in hands))
    longest = max(seconds, key=lambda key: seconds[key])
    return Fleet(profile, shards, whole, max(hands, key=lambda hand: hand.seconds), (longest, seconds[longest]))


def _cases(profile: Profile, clause: str, lane: str, dtype: str) -> int:
    if clause not in REGISTRY:
        raise UsageError(f"the report has a clause {clause}, which this version of the suite does not have")
    declared = REGISTRY[clause]
    return profile.cases(declared, lane, "" if dtype == ANY_DTYPE else dtype) + profile.searched(declared, lane)


def _cost(chosen: set[Key], cases: Mapping[Key, int], seconds: Mapping[Key, float]) -> Cost:
    cost = Cost()
    for key, count in cases.items():
        if key in chosen:
            cost.add(count, seconds[key])
    return cost
