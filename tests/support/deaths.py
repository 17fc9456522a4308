"""`python -m tests.support.deaths` prints how many cases each clause needs to fail its known-bad twins, and has.

The small defects of `tests.campaigns.sensitivity` count as twins, one for each size. The rows that `quick` shares
follow from these numbers, and are chosen again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterable

from conformance.run import profiles, row_choice, shared_rows
from conformance.run.case_search import Examination
from conformance.run.profiles import DEATHS, PROFILES, Profile
from conformance.specification.clause import Clause, load_all
from tests.campaigns.sensitivity import DEFECTS, seen
from tests.support.twins import CLAUSES, REGISTRY, KnownBad, begun, pairs

MOST = 30  # most cases for a clause of weight 1
LOOKING = Profile("deaths", volume=MOST, interpreted=MOST, shrinks=0)
# By clause: the largest index of a case, from 0, at which one of its twins first fails; and its number of twins.
Deaths = dict[str, tuple[int | None, int]]


def death(bad: KnownBad) -> int | None:
    """Return the index, from 0, of the decided case at which a twin fails its own clause; None if it does not fail.

    The index is the smallest over all subjects and dtypes, since a run judges all of them.
    """
    clause, least = CLAUSES[bad.clause], None
    with begun(bad) as target:
        for subject, dtype in pairs(bad, target, clause):
            volume = LOOKING.volume if least is None else least / clause.weight
            profile = dataclasses.replace(LOOKING, volume=volume)
            result = Examination(clause, subject, dtype, profile).run()
            if result.status != "pass":  # of the cases after the failing one, drawn for a pattern, none is decided
                least = min(result.examples - 1, result.examples if least is None else least)
            if least == 0:
                break
    return least


def measured(clauses: Iterable[Clause]) -> Deaths:
    """Measure the deaths of the twins of these clauses; print a line for each twin on standard error."""
    found: Deaths = {}
    for clause in clauses:
        numbers = []
        for bad in (bad for bad in REGISTRY.values() if bad.clause == clause.id):
            numbers.append(death(bad))
            sys.stderr.write(f"{bad.name} {numbers[-1]}\n")
        twins = len(numbers)
        numbers += small_defects(clause)
        known = [number for number in numbers if number is not None]
        found[clause.id] = (max(known) if len(known) == len(numbers) else None, twins)
    return found


def small_defects(clause: Clause) -> list[int | None]:
    """Return, for each small defect and size, the index of the decided case at which the clause detects it."""
    return [
        next((number for number, shows in enumerate(seen(defect, clause.id, size, MOST)) if shows), None)
        for defect in DEFECTS
        if clause.id in defect.clauses
        for size in defect.sizes
    ]


def read() -> Deaths:
    """Read the recorded deaths."""
    return {name: (number, twins) for name, (number, twins) in json.loads(DEATHS.read_text()).items()}


def write(deaths: Deaths) -> None:
    """Record the deaths, one line per clause."""
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(deaths[name])}" for name in sorted(deaths))
    DEATHS.write_text(f"{{\n{lines}\n}}\n")


def table(deaths: Deaths) -> list[str]:
    """Return a line for each clause: its twins, the cases that fail all of them, and the cases of the profiles."""
    lines = [f"{'clause':<28} {'twins':>5} {'cases':>5} {'quick':>5} {'default':>7}"]
    for name, (number, twins) in sorted(deaths.items()):
        quick, default = (PROFILES[profile].cases(CLAUSES[name], "cpu") for profile in ("quick", "default"))
        needed = f"> {round(MOST * CLAUSES[name].weight)}" if number is None else number + 1
        lines.append(f"{name:<28} {twins:>5} {needed:>5} {quick:>5} {default:>7}")
    return lines


def main() -> int:
    """Measure the chosen groups if asked, and print what was measured; else print the whole table."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.deaths", description=__doc__)
    what = "judge the twins of clauses whose number of twins differs from the recorded one, and record the results"
    parser.add_argument("--measure", action="store_true", help=what)
    parser.add_argument("--group", action="append", help="measure all clauses of this group; may be repeated")
    parser.add_argument("--whole", action="store_true", help="measure all clauses")
    chosen = parser.parse_args()
    deaths = read() if DEATHS.exists() else {}
    if chosen.measure or chosen.group or chosen.whole:
        twins = Counter(bad.clause for bad in REGISTRY.values())
        changed = {name for name in CLAUSES if deaths.get(name, (None, 0))[1] != twins[name]}
        clauses = [
            clause
            for clause in CLAUSES.values()
            if chosen.whole or clause.group in (chosen.group or ()) or (chosen.measure and clause.id in changed)
        ]
        found = measured(clauses)
        write({name: known for name, known in deaths.items() if name in CLAUSES} | found)
        profiles.deaths.cache_clear()
        shared_rows.CHOSEN.write_text(row_choice.text(load_all().values()), encoding="utf-8")
        deaths = found  # to count the cases of profile `default` takes long for all
    sys.stdout.write("\n".join(table(deaths)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
