"""`loraspec ranks`: print a table of the group `distributed`, by clause, strategy and number of ranks."""

from __future__ import annotations

import argparse
import json
import sys

from conformance.commands import output
from conformance.errors import UsageError

WORLDS = (1, 2, 4)


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    ranks = commands.add_parser("ranks", help="judge a target on 1, 2 and 4 ranks: verdict and seconds by strategy")
    ranks.add_argument("target", metavar="TARGET", help="package.module or package.module:attribute")
    ranks.add_argument("--ranks", type=int, nargs="+", choices=WORLDS, default=WORLDS, metavar="N", help="1, 2 or 4")
    ranks.add_argument("--cases", type=_positive, default=1, metavar="N", help="cases for each cell (default 1)")
    ranks.add_argument("--clause", nargs="+", metavar="ID", help="only these clauses")
    ranks.add_argument("--json", action="store_true", help="print the cells as JSON instead")


def execute(options: argparse.Namespace) -> int:
    """Run the command. Returns 0 if every cell passes, else 1."""
    from conformance.bench import distributed_table
    from conformance.errors import TargetError

    try:
        cells = distributed_table.judged(options.target, tuple(options.ranks), options.cases, options.clause)
    except TargetError as error:
        raise UsageError(str(error)) from error
    if options.json:
        sys.stdout.write(json.dumps([cell.to_json() for cell in cells], indent=1) + "\n")
    else:
        sys.stdout.write(distributed_table.markdown(cells))
    return int(any(cell.status != "pass" for cell in cells))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of cases, at least 1")
    return int(text)
