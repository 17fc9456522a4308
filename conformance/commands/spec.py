"""`loraspec spec`: generate SPEC.md, and the tables of TARGETS.md and README.md, from the clauses."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from conformance.commands import output
from conformance.errors import UsageError, known


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    spec = commands.add_parser(
        "spec", help="write SPEC.md, and the tables of TARGETS.md and README.md, from the clauses"
    )
    spec.add_argument("--coverage", action="store_true", help="only print the pairs of values that the cases meet")
    spec.add_argument("--profile", default="default", help="of --coverage: quick, default or nightly (triples)")
    spec.add_argument("--group", action="append", help="of --coverage: count this group; may be repeated")
    spec.add_argument("--check", action="store_true", help="only check whether the files are up to date")


def execute(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from conformance.report import terminal
    from conformance.report.files import replace

    if options.coverage:
        for line in _coverage(options.profile, options.group):
            terminal.console().print(line)
        return 0

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
    from conformance.run import row_choice, shared_rows
    from conformance.specification import spec_page
    from conformance.specification.clause import load_all
    from conformance.target import targets_page

    clauses = list(load_all().values())
    found = {spec_page.PATH: spec_page.document(clauses), shared_rows.CHOSEN: row_choice.text(clauses)}
    if targets_page.README.exists():
        found[targets_page.PATH] = targets_page.page(targets_page.PATH.read_text(encoding="utf-8"), clauses)
        found[targets_page.README] = targets_page.readme(targets_page.README.read_text(encoding="utf-8"))
    return found


def _coverage(name: str, chosen: list[str] | None) -> Iterator[str]:
    """A table of the combinations that the cases of a profile meet, with one line for each group."""
    from conformance.run.pair_coverage import coverage_by_group
    from conformance.run.profiles import PROFILES
    from conformance.specification.clause import load_all
    from conformance.specification.groups import groups

    known([name], PROFILES, "profile")
    known(chosen or (), groups(), "group")
    profile = PROFILES[name]
    what = "triples" if profile.strength == 3 else "pairs"
    yield f"{what} of values of different fields that the cases of profile {name} meet"
    yield f"{'group':<12} {'clauses':>7} {'each clause by itself':>24} {'the group as a whole':>24}"
    # a shared folder has clauses of several groups, and a process may have loaded others before
    counted = [clause for clause in load_all(chosen).values() if not chosen or clause.group in chosen]
    for group, met in coverage_by_group(counted, profile).items():
        alone, across = f"{met.met} of {met.possible}", f"{len(met.across_met)} of {len(met.across)}"
        yield f"{group:<12} {met.clauses:>7} {alone:>24} {across:>24}"
