"""Shards: split the trials of a plan into n parts of about equal cost. Every machine computes the same parts."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
from collections.abc import Mapping

from conformance.errors import UsageError
from conformance.report.plan import Plan
from conformance.report.trial_keys import Key
from conformance.run.selection import shard_numbers


def costs(plan: Plan) -> dict[Key, int]:
    """The cost of each trial of a plan: its number of cases."""
    return {trial.key: trial.cases for trial in plan.trials}


def part(plan: Plan, shard: str | None) -> Plan:
    """The plan of one shard: its trials, their clauses and groups, and the clauses without trials.

    Raises:
        UsageError: if there are more shards than trials.
    """
    if shard is None:
        return plan
    chosen = share(costs(plan), shard)
    clauses = []
    for clause in plan.clauses:
        trials = tuple(trial for trial in clause.trials if trial.key in chosen)
        if trials or not clause.trials:
            clauses.append(dataclasses.replace(clause, trials=trials))
    left = {clause.group for clause in clauses}
    return dataclasses.replace(
        plan,
        clauses=tuple(clauses),
        groups={name: group for name, group in plan.groups.items() if name in left},
        deviations={k: v for k, v in plan.deviations.items() if any(k == clause.id for clause in clauses)},
    )


def share(cost_of: Mapping[Key, int], shard: str) -> set[Key]:
    """The trials of one shard, given the cost of each trial.

    Raises:
        UsageError: if there are more shards than trials.
    """
    number, count = shard_numbers(shard)
    chosen = set(_dealt(cost_of, count)[number - 1])
    if not chosen:
        raise UsageError(f"shard {shard} is empty: {len(cost_of)} trials are planned, so ask for no more shards")
    return chosen


def _dealt(cost_of: Mapping[Key, int], count: int) -> list[list[Key]]:
    """Assign each trial, in order of decreasing cost, to the shard with the lowest cost so far."""
    hands: list[list[Key]] = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    for key in sorted(cost_of, key=lambda key: (-cost_of[key], _shuffling(key))):
        cost, number = heapq.heappop(heap)
        hands[number].append(key)
        heapq.heappush(heap, (cost + cost_of[key], number))
    return hands


def _shuffling(key: Key) -> str:
    # shuffles trials of equal cost: in alphabetical order, each of four shards would get a single dtype
    return hashlib.sha256(" ".join(key).encode()).hexdigest()
