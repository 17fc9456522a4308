"""The pairs (or triples) of values that the cases of a profile meet, for each clause and across each group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from conformance.cases.covering_array import Coverage
from conformance.cases.size_relations import SIZES
from conformance.run.profiles import Profile
from conformance.specification.clause import Clause

Combination = frozenset[tuple[str, Any]]  # names of fields, each with a value


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
    across: set[tuple[str, Combination]] = field(default_factory=set)
    across_met: set[tuple[str, Combination]] = field(default_factory=set)


def coverage_by_group(clauses: Iterable[Clause], profile: Profile) -> dict[str, Met]:
    """Count, for each group, the pairs that its clauses meet with the cases of a profile; triples with strength 3."""
    found: dict[str, Met] = {}
    for clause in clauses:
        if clause.cases.covers:
            continue  # the report of a run counts what its cases cover
        possible, met = _of_clause(clause, profile)
        group = found.setdefault(clause.group, Met())
        group.clauses += 1
        group.possible += len(possible)
        group.met += len(met)
        name = clause.cases.case_type.__name__
        group.across |= {(name, combination) for combination in possible}
        group.across_met |= {(name, combination) for combination in met}
    return found


def _of_clause(clause: Clause, profile: Profile) -> tuple[set[Combination], set[Combination]]:
    """The combinations that the cases of a clause can meet, and those that a profile's cases do meet."""
    strength = max(profile.strength, 2)
    rows = clause.cases.rows(profile.seed, clause.id, clause.dtypes, strength)
    rows.count("")  # draws all rows, after which the excluded combinations are known
    axes = clause.cases.axes(clause.dtypes)
    if strength == 3:
        axes = {name: values for name, values in axes.items() if name not in SIZES}
    coverage = Coverage(axes, strength)
    possible = set(coverage.open) - rows.coverages[-1].excluded
    for dtype in clause.dtypes or ("",):
        count = profile.cases(clause, "cpu", dtype)
        coverage.add(
            clause.cases.draw(profile.seed, clause.id, index, dtype, clause.dtypes, strength) for index in range(count)
        )
    met = possible - set(coverage.open)
    return {_named(coverage, c) for c in possible}, {_named(coverage, c) for c in met}


def _named(coverage: Coverage, combination: tuple[int, ...]) -> Combination:
    return frozenset(coverage.items[number] for number in combination)
