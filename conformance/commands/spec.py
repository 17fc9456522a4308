"""`loraspec spec`: write SPEC.md from the clauses."""

from __future__ import annotations

import argparse

from conformance.commands import output
from conformance.selection import UsageError


def add(commands: output.Commands) -> None:
    """Its options."""
    spec = commands.add_parser("spec", help="write SPEC.md from the clauses")
    spec.add_argument("--check", action="store_true", help="only say whether it is up to date")


def execute(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from conformance import spec, terminal
    from conformance.clause import load_all
    from conformance.report import replace

    text = spec.document(load_all().values())
    current = spec.PATH.read_text(encoding="utf-8") if spec.PATH.exists() else None
    if options.check:
        if text != current:
            raise UsageError(f"{spec.PATH} is out of date: run `loraspec spec`")
        return 0
    replace(spec.PATH, text)
    terminal.console().print(f"wrote {spec.PATH}")
    return 0
