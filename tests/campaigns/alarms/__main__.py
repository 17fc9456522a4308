"""`python -m tests.campaigns.alarms run` judges right implementations and writes a journal; `… table` sums it up."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from tests.campaigns.alarms import summary
from tests.support import json_entries


def main() -> int:
    """Parse the command line and run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.alarms", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="judge right implementations; an interrupted run continues its journal")
    run.add_argument("--journal", type=Path, default=Path("alarms.jsonl"))
    run.add_argument("--rounds", type=int, default=1, help="number of rounds; each draws new cases")
    run.add_argument("--volume", type=int, default=24, help="cases per clause, subject and dtype in a round")
    run.add_argument("--shard", default="1/1", help="i/n: every n-th implementation and round, from the i-th on")
    run.add_argument("--only", nargs="*", help="judge only these implementations")
    table = commands.add_parser("table", help="print alarms by dtype, headroom and undecided share by clause")
    table.add_argument("journals", type=Path, nargs="+")
    table.add_argument("--json", type=Path, help="also write the sums to this file")
    options = parser.parse_args()
    if options.command == "run":
        return _run(options)
    found = summary.summary(summary.read(options.journals))
    if options.json is not None:
        json_entries.write(options.json, found)
    return summary.show(found)


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported
    from tests.campaigns.alarms import campaign

    done = _finished(options.journal)
    index, count = map(int, options.shard.split("/"))
    names = options.only or campaign.targets()
    wanted = [(name, number) for number in range(options.rounds) for name in names][index - 1 :: count]
    for name, number in wanted:
        if f"{name} {number} {options.volume}" in done:
            continue
        found = [dataclasses.asdict(entry) for entry in campaign.entries(name, number, options.volume)]
        # A round is written at once: an interrupted round leaves no entries and is repeated.
        lines = [json.dumps(entry, ensure_ascii=False) for entry in found]
        with options.journal.open("a", encoding="utf-8") as journal:
            journal.write("\n".join(lines) + "\n")
        print(f"{name} {number}: {sum(e['cases'] for e in found)} cases", file=sys.stderr, flush=True)
    return 0


def _finished(journal: Path) -> set[str]:
    entries = summary.read([journal]) if journal.exists() else []
    return {f"{e['name']} {e['round']} {e['volume']}" for e in entries}


if __name__ == "__main__":
    sys.exit(main())
