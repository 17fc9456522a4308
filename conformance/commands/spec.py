"""`loraspec spec`: generate SPEC.md, and the tables of TARGETS.md and README.md, from the clauses."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.commands import output
from conformance.errors import UsageError


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    spec = commands.add_parser(
        "spec", help="write SPEC.md, and the tables of TARGETS.md and README.md, from the clauses"
    )
    spec.add_argument("--check", action="store_true", help="only check whether the files are up to date")


def execute(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from conformance.report import terminal
    from conformance.report.files import replace

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
    """The expected text of each generated file. Tables are included only in a checkout, which has README.md."""
    from conformance.specification import spec_page
    from conformance.specification.clause import load_all
    from conformance.target import targets_page

    clauses = list(load_all().values())
    found = {spec_page.PATH: spec_page.document(clauses)}
    if targets_page.README.exists():
        found[targets_page.PATH] = targets_page.page(targets_page.PATH.read_text(encoding="utf-8"), clauses)
        found[targets_page.README] = targets_page.readme(targets_page.README.read_text(encoding="utf-8"))
    return found
