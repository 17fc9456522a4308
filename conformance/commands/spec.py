"""`loraspec spec`: write SPEC.md, and the table of TARGETS.md, from the clauses."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.commands import output
from conformance.selection import UsageError


def add(commands: output.Commands) -> None:
    """Its options."""
    spec = commands.add_parser("spec", help="write SPEC.md, and the table of TARGETS.md, from the clauses")
    spec.add_argument("--check", action="store_true", help="only say whether they are up to date")


def execute(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from conformance import terminal
    from conformance.report import replace

    for path, text in _documents().items():
        current = path.read_text(encoding="utf-8") if path.exists() else None
        if options.check:
            if text != current:
                raise UsageError(f"{path} is out of date: run `loraspec spec`")
            continue
        replace(path, text)
        terminal.console().print(f"wrote {path}")
    return 0


def _documents() -> dict[Path, str]:
    """What each generated file should be; TARGETS.md only in a checkout, which has it."""
    from conformance import contract, spec
    from conformance.clause import load_all

    clauses = list(load_all().values())
    found = {spec.PATH: spec.document(clauses)}
    if contract.PATH.exists():
        text, readme = (path.read_text(encoding="utf-8") for path in (contract.PATH, contract.README))
        found[contract.PATH] = contract.page(text, readme, clauses)
    return found
