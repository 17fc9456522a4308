"""`loraspec init`: write a target module to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.commands import output
from conformance.errors import UsageError


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    init = commands.add_parser("init", help="write a target module to start from")
    init.add_argument("path", metavar="my_target.py", nargs="?", type=Path, help="default my_target.py")
    init.add_argument("--output", metavar="FILE", type=Path, help="the same file, named by an option")
    init.add_argument(
        "--layer",
        metavar="package.module:Class",
        help="a target of this LoRA layer, from its signature and one small built layer; each guess has a comment",
    )


def execute(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from conformance.report import terminal
    from conformance.target import template

    if options.path and options.output:
        raise UsageError(f"{str(options.path)!r} and --output {str(options.output)!r} name two files: expected one")
    path = options.path or options.output or Path("my_target.py")
    name, group, out = path.stem, "linear", terminal.console()
    template.check(path)
    if options.layer is None:
        template.write(path, template.TEMPLATE.format(name=name))
        out.print(f"wrote {path}; next: loraspec run {name} --group {group} --profile quick")
        return 0
    from conformance.target.draft.layer_target import layer_target

    found = layer_target(options.layer, name)
    template.write(path, found.text)
    guessed = (
        f"look at its {found.guesses} guesses, each has a comment" if found.guesses else "it has our names already"
    )
    out.print(f"wrote {path} for {options.layer}; {guessed}")
    if not found.computes:
        out.print("a built layer does not compute x Wᵀ + b + s·(x Aᵀ) Bᵀ with the matrices that were found")
    out.print(f"next: loraspec run {name} --group layer --profile quick")
    return 0
