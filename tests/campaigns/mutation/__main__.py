"""`python -m tests.campaigns.mutation run` judges mutants and writes a journal; `… table` sums it up."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.campaigns.mutation import summary
from tests.campaigns.mutation.mutants import all_mutants
from tests.campaigns.mutation.summary import STAGES

MANY = 100


def main() -> int:
    """Parse the command line and run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.mutation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="judge mutants, but those already in the journal or in judged.csv")
    run.add_argument("--journal", type=Path, default=Path("mutation.jsonl"))
    run.add_argument("--share", type=float, default=1.0, help="judge a fixed random share of the mutants, 0 to 1")
    run.add_argument("--shard", default="1/1", help="i/n: every n-th mutant, starting with the i-th")
    run.add_argument("--only", default="", help="judge only mutants whose name contains this")
    run.add_argument("--until", choices=STAGES, default=STAGES[-1], help="what this passes stays undecided for later")
    run.add_argument(
        "--again",
        choices=("open", "all"),
        help="of what judged.csv has, judge again survivors without a reason, or all",
    )
    table = commands.add_parser("table", help="print scores by file, and survivors without a reason")
    table.add_argument("journals", type=Path, nargs="*")
    table.add_argument("--json", type=Path, help="also write the table to this file, and the verdicts to judged.csv")
    table.add_argument("--readme", type=Path, help="also write the table's sentence into this page")
    options = parser.parse_args()
    if options.command == "table":
        return summary.show(options.journals, options.json, options.readme)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported
    from tests.campaigns.mutation import verdict
    from tests.campaigns.mutation.reach import Reach
    from tests.campaigns.mutation.reached_tests import ReachedTests

    every = all_mutants(named=options.only)
    kept = () if options.again == "all" else summary.kept(every)
    before = [e for e in kept if options.again != "open" or not _is_open(e)]
    before += summary.read([options.journal]) if options.journal.exists() else []
    passed = {entry["mutant"]: _stages_of(entry) for entry in before}
    last = STAGES.index(options.until) + 1
    done = {mutant for mutant, stages in passed.items() if stages >= last}
    chosen = [m for m in every if m.place < options.share and options.only in m.id]
    chosen.sort(key=lambda mutant: mutant.place)  # an interrupted run has judged a smaller share, and as random
    index, count = map(int, options.shard.split("/"))
    chosen = [m for m in chosen[index - 1 :: count] if m.id not in done and m.valid]
    if not chosen:
        return 0
    verdict.prepare()
    # to measure what runs a line takes minutes, which a few mutants do not give back
    many, folder = len(chosen) >= MANY, options.journal.parent / "reach"
    reach = Reach(folder, verdict.SLOW, verdict.QUICK) if many else None
    reached = ReachedTests(folder) if many else None
    with options.journal.open("a", encoding="utf-8") as journal:
        for number, mutant in enumerate(chosen, 1):
            # what has a reason is not run: it cannot raise the score, and what survives costs the most
            known = verdict.Verdict(mutant.id, "survived", message="not run") if summary.reason(mutant.id) else None
            stages = STAGES[passed.get(mutant.id, 0) : last]
            found = known or verdict.verdict(mutant, reach, reached, stages)
            entry = dataclasses.asdict(found) | {"file": mutant.file, "operator": mutant.operator}
            entry["stage"] = "" if stages == STAGES else stages[-1]
            journal.write(json.dumps(entry, ensure_ascii=False) + "\n")
            journal.flush()
            if found.status == "survived":
                print(f"{number}/{len(chosen)} survived: {mutant.id}", file=sys.stderr)
    return 0


def _stages_of(entry: dict[str, Any]) -> int:
    """How many stages a mutant has behind it: all of them if it is decided."""
    return STAGES.index(entry["stage"]) + 1 if entry["status"] == "undecided" else len(STAGES)


def _is_open(entry: dict[str, Any]) -> bool:
    """Whether an entry is of a survivor for which there is no reason."""
    return entry["status"] == "survived" and not summary.reason(entry["mutant"])


if __name__ == "__main__":
    sys.exit(main())
