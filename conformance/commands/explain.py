"""`loraspec explain`: print a clause and how it is checked."""

from __future__ import annotations

import argparse

from conformance.commands import output
from conformance.errors import UsageError, suggestion
from conformance.specification.groups import groups


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    explain = commands.add_parser("explain", help="print a clause and how it is checked")
    explain.add_argument("id", metavar="ID", help="a clause (LIN-BWD-DA) or a group (linear)")


def execute(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from conformance.report import terminal
    from conformance.specification import spec_page
    from conformance.specification.former_ids import present, remarks

    try:
        entries = spec_page.read()
    except FileNotFoundError:
        raise UsageError(f"{spec_page.PATH} is missing: write it with `loraspec spec`") from None
    out = terminal.console()
    members = [entry for entry in entries.values() if entry.group == options.id]
    if members:
        for entry in members:
            out.print(f"{entry.id:<20} {entry.level:<6} {entry.sentence}")
        return 0
    if present(options.id) not in entries:
        spec_page.check_written([options.id], entries)
        raise UsageError(f"unknown clause {options.id!r}: {suggestion(options.id, [*entries, *groups()])}")
    for line in [*remarks([options.id]), *terminal.explanation(entries[present(options.id)])]:
        out.print(line)
    return 0
