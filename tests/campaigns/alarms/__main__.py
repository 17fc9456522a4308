"""`python -m tests.campaigns.alarms run` judges right implementations and writes a journal; `… table` sums it up."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

from conformance.errors import UsageError
from tests.campaigns.alarms import shares, summary
from tests.support import json_entries, marked_lines


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.alarms", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="judge right implementations; an interrupted run continues its journal")
    run.add_argument("--journal", type=Path, default=Path("alarms.jsonl"))
    run.add_argument("--rounds", type=int, default=shares.ROUNDS, help="number of rounds; each draws new cases")
    run.add_argument("--minutes", type=float, default=float("inf"), help="stop after these; the next run continues")
    run.add_argument("--shard", default="1/1", help="i/n: every n-th round, from the i-th on")
    run.add_argument("--only", nargs="*", default=[], help="judge only these implementations")
    run.add_argument("--clause", default="*", help="only clauses that match a pattern such as 'FUS-*'")
    again = commands.add_parser("again", help="judge the cases of the alarms again, after a clause was mended")
    table = commands.add_parser("table", help="print cases and alarms by group, and the clauses that leave least room")
    for command in (again, table):
        command.add_argument("journals", type=Path, nargs="+")
    table.add_argument("--json", type=Path, help="also write the sums to this file")
    table.add_argument("--readme", type=Path, help="also write the sums' line into this page")
    options = parser.parse_args(arguments)
    if options.command == "run":
        return _run(options)
    if options.command == "again":
        return _again(options.journals)
    found = summary.summary(summary.read(options.journals))
    if options.json is not None:
        json_entries.write(options.json, found)
    if options.readme is not None:
        marked_lines.write(options.readme, "alarms", summary.COMMAND, summary.line(found))
    return summary.show(found)


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported
    from tests.campaigns.alarms import campaign

    started = time.monotonic()
    index, count = _shard(options.shard)
    names = list(campaign.right_implementations(options.only))
    chosen = campaign.clauses(options.clause)
    rates = shares.rates(chosen)
    done = {(entry["round"], entry["clause"]) for entry in summary.entries([options.journal])}
    for number in range(index - 1, options.rounds, count):
        cases = 0
        for clause in chosen:
            if (number, clause.id) in done:
                continue
            if time.monotonic() - started > 60 * options.minutes:
                return 0
            found = campaign.entry(clause, names, rates[clause.id], number)
            summary.add(options.journal, dataclasses.asdict(found))
            for alarm in found.alarms:
                print(summary.alarm_line(clause.id, alarm), file=sys.stderr)
            cases += sum(found.decided.values())
        campaign.forget_compiled()
        if cases:
            print(f"round {number + 1} of {options.rounds}: {cases:,} cases", file=sys.stderr, flush=True)
    return 0


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"--shard is {text!r}: expected i/n with 1 ≤ i ≤ n, such as 1/2")
    return int(index), int(count)


def _again(journals: list[Path]) -> int:
    os.environ.setdefault("TRITON_INTERPRET", "1")
    from tests.campaigns.alarms import campaign

    left = 0
    for journal in journals:
        for clause, alarm in summary.alarms(summary.read([journal])):
            status, _, message = campaign.judge_again(alarm, clause)
            summary.add(journal, {"again": {**alarm, "clause": clause}, "status": status})
            print(f"{status:<9} {summary.alarm_line(clause, {**alarm, 'message': message})}")
            left += status == "alarm"
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
