"""Shards: the trials of a plan dealt into n parts of about equal cost, the same parts on every machine."""

from __future__ import annotations

import hashlib
import heapq
from typing import Any

from conformance.errors import UsageError
from conformance.report.trial_keys import Key, keys
from conformance.run.selection import shard_numbers


def costs(plan: dict[str, Any]) -> dict[Key, int]:
    """What each planned trial costs: its cases."""
    return {
        (clause["id"], trial["subject"], trial["dtype"]): trial["cases"]
        for clause in plan["clauses"]
        for trial in clause["trials"]
    }


def part(plan: dict[str, Any], shard: str | None) -> dict[str, Any]:
    """The plan of one shard: its trials, the clauses and groups that they leave, and all that is not claimed.

    Raises:
        UsageError: if there are more shards than trials.
    """
    if shard is None:
        return plan
    number, count = shard_numbers(shard)
    chosen = set(_dealt(plan, count)[number - 1])
    if not chosen:
        raise UsageError(f"shard {shard} is empty: {len(keys(plan))} trials are planned, so ask for no more shards")
    clauses = []
    for clause in plan["clauses"]:
        trials = [t for t in clause["trials"] if (clause["id"], t["subject"], t["dtype"]) in chosen]
        if trials or not clause["trials"]:
            clauses.append({**clause, "trials": trials})
    left = {clause["group"] for clause in clauses}
    return {
        **plan,
        "clauses": clauses,
        "groups": {name: about for name, about in plan["groups"].items() if name in left},
        "deviations": {k: v for k, v in plan["deviations"].items() if any(k == c["id"] for c in clauses)},
    }


def _dealt(plan: dict[str, Any], count: int) -> list[list[Key]]:
    """Each trial, the costliest first, to the shard that has the least so far."""
    cost_of = costs(plan)
    hands: list[list[Key]] = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    for key in sorted(cost_of, key=lambda key: (-cost_of[key], _shuffling(key))):
        cost, number = heapq.heappop(heap)
        hands[number].append(key)
        heapq.heappush(heap, (cost + cost_of[key], number))
    return hands


def _shuffling(key: Key) -> str:
    # trials of equal cost in an order of their own: alphabetically, each of four shards would get one dtype
    return hashlib.sha256(" ".join(key).encode()).hexdigest()
