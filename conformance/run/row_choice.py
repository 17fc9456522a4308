"""The choice of shared rows: few further cases, in cheap clauses, with which a group meets every pair of values."""

from __future__ import annotations

import hashlib
import heapq
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from conformance.run.expected_seconds import seconds_of_case
from conformance.run.pair_coverage import Named, pairs_of
from conformance.run.profiles import PROFILES
from conformance.run.shared_rows import Rows, read
from conformance.specification.clause import Clause
from conformance.specification.groups import groups

QUICK = PROFILES["quick"]
DEAREST = 0.04  # seconds for a new pair, beyond which it is left to profile `default`
UNKNOWN = 0.01  # of a clause without a measurement, such as one for encryption backends alone
DRAWING = 3e-4  # seconds to draw a case
FREE = 1e-6  # the cost of a case that the clause draws anyway
Place = tuple[str, str]  # a clause's id and a dtype


@dataclass(frozen=True)
class Candidate:
    """A row of a clause's covering array, and the pairs that it meets."""

    place: Place
    number: int
    pairs: frozenset[Named]


class Choice:
    """The rows that one group spends, chosen one after the other: each time the most pairs for a second.

    A pair counts as much as the cheapest case that meets it costs: a dear clause is for the pairs that no other meets.

    Attributes:
        open: the pairs that no case has met.
        rows: the chosen rows by clause and dtype.
    """

    def __init__(self, clauses: Iterable[Clause]) -> None:
        self.open: set[Named] = set()
        self.rows: Rows = {}
        self._candidates: list[Candidate] = []
        self._cost: dict[str, float] = {}
        self._left: dict[Place, int] = {}  # cases that are drawn beyond those that the twins need
        met: set[Named] = set()
        for clause in clauses:
            possible, meets = pairs_of(clause, QUICK.seed)
            self.open |= possible
            self._cost[clause.id] = _cost(clause)
            for dtype in clause.dtypes or ("",):
                needed = QUICK.needed(clause, "cpu")
                self._left[clause.id, dtype] = QUICK.alone(clause, "cpu") - needed
                count = clause.cases.rows(QUICK.seed, clause.id, clause.dtypes).count(dtype)
                for number in range(max(needed, count)):
                    found = meets(clause.cases.draw(QUICK.seed, clause.id, number, dtype, clause.dtypes))
                    if number < needed:
                        met |= found
                    else:
                        self._candidates.append(Candidate((clause.id, dtype), number, frozenset(found)))
        self.open -= met
        self._choose()

    def _price(self, place: Place) -> float:
        return FREE if self._left[place] > 0 else self._cost[place[0]]

    def _choose(self) -> None:
        worth: dict[Named, float] = {}
        for one in self._candidates:
            for pair in one.pairs & self.open:
                worth[pair] = min(self._cost[one.place[0]], worth.get(pair, float("inf")))

        def gain(number: int) -> float:
            one = self._candidates[number]
            return -sum(sorted(worth[pair] for pair in one.pairs & self.open)) / self._price(one.place)

        heap = [(gain(number), number) for number in range(len(self._candidates))]
        heapq.heapify(heap)
        while heap:
            _, number = heapq.heappop(heap)
            one, now = self._candidates[number], gain(number)
            if heap and now > heap[0][0]:
                if now:
                    heapq.heappush(heap, (now, number))  # others meet more by now
            elif now and self._price(one.place) <= DEAREST * len(one.pairs & self.open):
                name, dtype = one.place
                self.rows.setdefault(name, {}).setdefault(dtype, []).append(one.number)
                self._left[one.place] -= 1
                self.open -= one.pairs


def _cost(clause: Clause) -> float:
    subjects = clause.subjects or groups()[clause.group].subjects
    return max(1, len(subjects)) * (seconds_of_case(clause.id, "cpu", UNKNOWN) + DRAWING)


def digest(clauses: Iterable[Clause]) -> str:
    """A digest of what the rows of a group are chosen from: spaces, limits, dtypes, and the cases that twins need.

    The seconds of cases, which each measurement changes a little, do not count.
    """
    parts = [
        (
            one.id,
            one.dtypes,
            one.cases.case_type.__name__,
            one.cases.values,
            inspect.getsource(one.cases.limit),
            QUICK.needed(one, "cpu"),
            QUICK.alone(one, "cpu"),
        )
        for one in clauses
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def text(clauses: Iterable[Clause]) -> str:
    """The text of `shared_rows.json`, with one line for each clause. Groups that have not changed keep their rows."""
    by_group: dict[str, list[Clause]] = {}
    for clause in clauses:
        if not clause.cases.covers:
            by_group.setdefault(clause.group, []).append(clause)
    known, kept = read()
    digests, rows = {}, {}
    for group, members in by_group.items():
        digests[group] = digest(members)
        if known.get(group) == digests[group]:
            rows.update({one.id: kept[one.id] for one in members if one.id in kept})
        else:
            rows.update(Choice(members).rows)
    lines = [_object(digests), _object(dict(sorted(rows.items())))]
    return f'{{\n"groups": {lines[0]},\n"clauses": {lines[1]}\n}}\n'


def _object(entries: Mapping[str, object]) -> str:
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items()) + "\n}"
