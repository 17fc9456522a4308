"""The common options of the commands that write a report, and their output."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.report.report import Report

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_CODES = """\
exit codes: 0 every claimed MUST clause passes; 1 a MUST clause fails, crashes or is inconclusive, or a declared
deviation no longer fails; 2 usage, or a target does not import, does not bind or claims nothing that was chosen;
3 the suite itself failed."""


def reporting(commands: Commands, name: str, purpose: str) -> argparse.ArgumentParser:
    """The parser of a command whose exit code is a verdict."""
    raw = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(name, help=purpose, epilog=EXIT_CODES, formatter_class=raw)


def add(command: argparse.ArgumentParser) -> None:
    """Add the options of every command that writes a report."""
    command.add_argument("--report-dir", type=Path, default=Path("loraspec-report"), help="default loraspec-report")
    command.add_argument("-q", "--quiet", action="store_true", help="print only failures and the verdict")
    command.add_argument("--json", action="store_true", help="print the report as JSON instead")


def add_verbose(command: argparse.ArgumentParser) -> None:
    """Add the option that unfolds the remarks of a report."""
    command.add_argument("-v", "--verbose", action="store_true", help="print what the lives of each trial met")


def show(report: Report, options: argparse.Namespace) -> int:
    """Print a report in the chosen format. Returns its exit code."""
    from conformance.report import terminal
    from conformance.report.verdict import exit_code

    if options.json:
        sys.stdout.write(json.dumps(report.to_json(), indent=1) + "\n")
    else:
        terminal.show(report, options.report_dir, quiet=options.quiet, verbose=options.verbose)
    return exit_code(report)
