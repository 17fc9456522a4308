"""`python -m tests.campaigns.lives` lets right layers, models and runs live, and counts false alarms.

Lives are random operations, and each round draws others. An alarm is printed with its case, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections import Counter
from fnmatch import fnmatch

import torch

from conformance.clauses.life.life_case import LENGTH, LifeCase
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.specification.clause import Clause, load_all
from conformance.target.check_case import check_case
from conformance.target.target import Target
from tests.campaigns.variants.lives import VARIANTS

LIBRARIES = ("reference", "optimized")


def target_named(name: str) -> Target:
    """Return a right layer or run, right functions for models, or a library, as a target."""
    thing = VARIANTS[name] if name in VARIANTS else importlib.import_module(name)
    return Target.of(thing, name)


def lived(name: str, clause: Clause, number: int) -> tuple[Counter[str], list[str]]:
    """Live one life in each dtype; return the operations lived by dtype, and the alarms."""
    subject = target_named(name).subjects(clause)[0]
    counts: Counter[str] = Counter()
    alarms = []
    for dtype in clause.dtypes:
        case: LifeCase = clause.cases.draw(1, clause.id, number, dtype=dtype)
        try:
            check_case(clause, subject, case)
        except Inconclusive:
            counts["inconclusive"] += 1
        except (Violation, Refused) as alarm:
            alarms.append(f"{clause.id} {name} {case}\n{alarm}")
        else:
            counts[dtype] += len(case.operations)
    return counts, alarms


def main() -> int:
    """Parse the command line, live, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.lives", description=__doc__)
    parser.add_argument("--operations", type=int, default=14_000, help="for each implementation, over all dtypes")
    parser.add_argument("--first", type=int, default=0, help="the number of the first life")
    parser.add_argument("--only", nargs="*", default=[*VARIANTS, *LIBRARIES], help="these implementations")
    parser.add_argument("--clause", default="*", help="clauses, as a pattern such as 'LIFE-MODEL*'")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clauses = [clause for clause in load_all(("life",)).values() if clause.group == "life"]
    total = Counter[str]()
    for name in options.only:
        counts: Counter[str] = Counter()
        target = target_named(name)
        own = [clause for clause in clauses if target.subjects(clause) and fnmatch(clause.id, options.clause)]
        number = options.first
        while own and sum(counts.values()) + LENGTH * counts["alarms"] < options.operations:
            found, alarms = lived(name, own[number % len(own)], number)
            number += 1
            counts += found
            counts["alarms"] += len(alarms)
            print(*alarms, sep="\n", end="\n" if alarms else "")
        if not own:
            continue
        print(
            f"{name:<20} " + "  ".join(f"{dtype} {counts[dtype]}" for dtype in (*FLOAT_DTYPES, "inconclusive")),
            flush=True,
        )
        total += counts
    print(f"{sum(total[dtype] for dtype in FLOAT_DTYPES)} operations, {total['alarms']} alarms")
    return 1 if total["alarms"] else 0


if __name__ == "__main__":
    sys.exit(main())
