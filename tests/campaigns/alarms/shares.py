"""The share of cases that a clause gets in a round, and the implementation that judges each of them.

Each clause has about the same time, so a cheap clause gets more cases; a floor and a ceiling hold for all. Dtypes take
turns, and in each dtype the implementations. No case is judged twice: draws go on from round to round.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import floor, prod
from pathlib import Path

import conformance.run
from conformance.judgement.result import ANY_DTYPE
from conformance.specification.clause import Clause

ROUNDS = 44  # rounds of 23,000 cases make the million
SECONDS = 0.15  # for a clause in a round, as `conformance/run/seconds.json` estimates a case
FEWEST, MOST = 0.5, 48.0  # cases for a clause in a round
REPEATED = 1.25  # cases in a round for each combination of values: seeds alone differ in the further ones
UNKNOWN = 0.01  # seconds for a case of a clause that the estimates lack
COSTS = Path(conformance.run.__file__).with_name("seconds.json")


@dataclass(frozen=True)
class Judge:
    """One subject of one implementation, that a clause judges in one dtype."""

    implementation: str
    subject: str


@dataclass(frozen=True)
class Share:
    """One case for one judge: the number of the draw in the dtype."""

    dtype: str
    judge: Judge
    index: int


def rates(clauses: Iterable[Clause]) -> dict[str, float]:
    """The number of cases that each clause gets in a round; below 1, it gets one in some rounds."""
    costs = json.loads(COSTS.read_text(encoding="utf-8"))
    found = {}
    for clause in clauses:
        seconds = max(costs.get(clause.id, {}).get("cpu", UNKNOWN), 1e-6)
        combinations = prod(len(options) for options in clause.cases.axes(dtypes_of(clause)).values())
        found[clause.id] = max(FEWEST, min(MOST, SECONDS / seconds, REPEATED * combinations))
    return found


def shares(judges: dict[str, list[Judge]], rate: float, number: int, first: int = 0) -> Iterator[Share]:
    """The cases of a clause in round `number`, from the judges of each dtype; the first case goes to judge `first`."""
    dtypes = [dtype for dtype, able in judges.items() if able]
    for t in range(floor(number * rate), floor((number + 1) * rate)) if dtypes else ():
        dtype, index = dtypes[t % len(dtypes)], t // len(dtypes)
        yield Share(dtype, judges[dtype][(first + index) % len(judges[dtype])], index)


def dtypes_of(clause: Clause) -> tuple[str, ...]:
    """The dtypes of a clause, or the word for a clause without."""
    return clause.dtypes or (ANY_DTYPE,)
