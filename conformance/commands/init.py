"""`loraspec init`: write a target module to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.commands import output


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    init = commands.add_parser("init", help="write a target module to start from")
    init.add_argument("path", metavar="my_target.py", type=Path)


def execute(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from conformance.report import terminal
    from conformance.target import template

    template.write(options.path)
    name = options.path.stem
    terminal.console().print(f"wrote {options.path}; next: loraspec run {name} --group linear --profile quick")
    return 0
