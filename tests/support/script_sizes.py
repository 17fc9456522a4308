"""Print how long the scripts of the known-bad twins are: `python -m tests.support.script_sizes [every] [regex]`.

Each twin's own clause judges it, and the script of its failure is written; its size is printed on standard error.
With `every` 5, each fifth twin counts.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections import defaultdict

from conformance.reproducer.reproducer import script
from conformance.run.profiles import PROFILES
from tests.support.twins import CLAUSES, REGISTRY, KnownBad, begun, own_failure, reset

BOUNDS = (40, 80, 150, 300, 500)
WAITS = ("does not end", "not ended")  # twins whose check waits for a time limit


def lines_of(bad: KnownBad) -> int | None:
    """The number of lines of the script of a twin's failure; None if it does not fail."""
    result = own_failure(bad, PROFILES["quick"])
    if result is None or result.status != "fail":
        return None
    with begun(bad) as target:
        subject = next(each for each in target.subjects(CLAUSES[bad.clause]) if each.name == result.subject)
        sys.modules["twin"] = bad.target
        reset(bad)
        text = script(CLAUSES[bad.clause], subject, "twin", result)
    return text.count("\n") if text is not None else None


def main(every: int = 1, chosen: str = "") -> None:
    """Print a line for each group: the number of scripts of each size."""
    warnings.simplefilter("ignore")
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * (len(BOUNDS) + 1))
    twins = sorted(REGISTRY.values(), key=lambda bad: bad.name[::-1])[::every]
    for bad in twins:
        if not re.search(chosen, bad.name) or any(words in bad.says for words in WAITS):
            continue
        lines = lines_of(bad)
        if lines is not None:
            print(f"{lines:5} {bad.name}", file=sys.stderr, flush=True)
            size = sum(lines > bound for bound in BOUNDS)
            for group in (CLAUSES[bad.clause].group, "all"):
                counts[group][size] += 1
    heads = [*(f"≤ {bound}" for bound in BOUNDS), f"> {BOUNDS[-1]}"]
    print(f"{'group':12}" + "".join(f"{head:>8}" for head in heads))
    for group, row in sorted(counts.items()):
        print(f"{group:12}" + "".join(f"{number:8}" for number in row))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1, *sys.argv[2:3])
