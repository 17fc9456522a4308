"""`loraspec rerun`: check one case again."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from conformance.commands import output
from conformance.errors import UsageError
from conformance.run.selection import LANES


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    rerun = commands.add_parser("rerun", help="check one case again")
    rerun.add_argument("case", metavar="CASE", help="the quoted words of a failure's rerun line, or a report.json")
    rerun.add_argument("clause", nargs="?", help="with a report.json: the clause whose case is checked")
    rerun.add_argument("--device", help="cpu, cuda or cuda:N")
    rerun.add_argument("--lane", choices=LANES)


def execute(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from conformance.report import terminal
    from conformance.run import rerun_case

    path = Path(options.case)
    if path.suffix == ".json":
        line = rerun_case.from_report(path, options.clause)
    elif options.clause is not None:
        raise UsageError(f"{options.clause!r} comes after the case: quote the whole case as one argument")
    else:
        line = rerun_case.parse(options.case)
    given = {name: value for name in ("device", "lane") if (value := getattr(options, name)) is not None}
    status, seen = rerun_case.check(dataclasses.replace(line, **given))
    out = terminal.console()
    out.print(f"{status.upper()} {line.clause} {line.target} {line.case}")
    for text in terminal.message_lines(seen):
        out.print(text)
    return 0 if status == "pass" else 1
