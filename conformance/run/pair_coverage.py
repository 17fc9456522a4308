"""The pairs (or triples) of values that the cases of a profile meet, for each clause and across each group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from conformance.cases.case import Case
from conformance.cases.covering_array import Coverage
from conformance.cases.size_relations import SIZES
from conformance.run.profiles import Profile
from conformance.specification.clause import Clause

Combination = frozenset[tuple[str, Any]]  # names of fields, each with a value
Named = tuple[str, Combination]  # a case type and a combination of its fields


@dataclass
class Met:
    """The combinations that cases can meet, and those that they meet.

    Attributes:
        clauses: the number of clauses counted.
        possible: the combinations of each clause, summed over the clauses.
        met: those that the clause itself meets, summed over the clauses.
        across: the distinct combinations of all clauses, by case type.
        across_met: those that some clause meets.
    """

    clauses: int = 0
    possible: int = 0
    met: int = 0
    across: set[Named] = field(default_factory=set)
    across_met: set[Named] = field(default_factory=set)


def coverage_by_group(clauses: Iterable[Clause], profile: Profile) -> dict[str, Met]:
    """Count, for each group, the pairs that its clauses meet with the cases of a profile; triples with strength 3."""
    found: dict[str, Met] = {}
    for clause in clauses:
        if clause.cases.covers:
            continue  # the report of a run counts what its cases cover
        possible, meets = pairs_of(clause, profile.seed, max(profile.strength, 2))
        met = {combination for case in _cases(clause, profile) for combination in meets(case)}
        group = found.setdefault(clause.group, Met())
        group.clauses += 1
        group.possible += len(possible)
        group.met += len(met)
        group.across |= possible
        group.across_met |= met
    return found


def pairs_of(clause: Clause, seed: int, strength: int = 2) -> tuple[set[Named], Callable[[Case], set[Named]]]:
    """The combinations that the cases of a clause can meet, and a function that returns those that a case meets."""
    rows = clause.cases.rows(seed, clause.id, clause.dtypes, strength)
    rows.count("")  # draws all rows, after which the excluded combinations are known
    axes = clause.cases.axes(clause.dtypes)
    if strength == 3:
        axes = {name: values for name, values in axes.items() if name not in SIZES}
    coverage, kind = Coverage(axes, strength), clause.cases.case_type.__name__
    possible = {
        combination: (kind, frozenset(coverage.items[number] for number in combination))
        for combination in coverage.open
        if combination not in rows.coverages[-1].excluded
    }

    def meets(case: Case) -> set[Named]:
        return {possible[combination] for combination in coverage.met(case) if combination in possible}

    return set(possible.values()), meets


def _cases(clause: Clause, profile: Profile) -> Iterator[Case]:
    """The cases that a profile draws for a clause, in all its dtypes."""
    for dtype in clause.dtypes or ("",):
        drawn = partial(clause.cases.draw, profile.seed, clause.id)
        shared = profile.shared(clause, "cpu", dtype)
        for number in range(profile.cases(clause, "cpu", dtype) - len(shared)):
            yield drawn(number, dtype, clause.dtypes, profile.strength)
        yield from (drawn(number, dtype, clause.dtypes) for dtype, number in shared)
