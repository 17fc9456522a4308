"""`python -m tests.campaigns.mutation run` judges mutants and writes a journal; `… table` sums it up."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.campaigns.mutation import summary
from tests.campaigns.mutation.mutants import Mutant, all_mutants

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

    done = {entry["mutant"] for entry in summary.read([options.journal])} if options.journal.exists() else set()
    every = all_mutants(named=options.only)
    kept = () if options.again == "all" else summary.kept(every)
    done |= {e["mutant"] for e in kept if options.again != "open" or not _is_open(e)}
    chosen = [m for m in every if _share_of(m) < options.share and options.only in m.id]
    chosen.sort(key=_share_of)  # an interrupted run has judged a smaller share, and as random
    index, count = map(int, options.shard.split("/"))
    chosen = [m for m in chosen[index - 1 :: count] if m.id not in done and m.valid]
    if not chosen:
        return 0
    verdict.prepare()
    # to measure which clauses run a line takes minutes, which a few mutants do not give back
    reach = Reach(options.journal.parent / "reach", verdict.SLOW, verdict.QUICK) if len(chosen) >= MANY else None
    with options.journal.open("a", encoding="utf-8") as journal:
        for number, mutant in enumerate(chosen, 1):
            # what has a reason is not run: it cannot raise the score, and what survives costs the most
            known = verdict.Verdict(mutant.id, "survived", message="not run") if summary.reason(mutant.id) else None
            found = known or verdict.verdict(mutant, reach)
            entry = dataclasses.asdict(found) | {"file": mutant.file, "operator": mutant.operator}
            journal.write(json.dumps(entry, ensure_ascii=False) + "\n")
            journal.flush()
            if found.status == "survived":
                print(f"{number}/{len(chosen)} survived: {mutant.id}", file=sys.stderr)
    return 0


def _is_open(entry: dict[str, Any]) -> bool:
    """Whether an entry is of a survivor for which there is no reason."""
    return entry["status"] == "survived" and not summary.reason(entry["mutant"])


def _share_of(mutant: Mutant) -> float:
    """Return a number from 0 to 1 that depends only on the mutant's name."""
    return int.from_bytes(hashlib.sha256(mutant.id.encode()).digest()[:6], "big") / 2**48


if __name__ == "__main__":
    sys.exit(main())
