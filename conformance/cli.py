"""The command `loraspec`: parsing, errors and exit codes of all commands, which are in `conformance/commands/`."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import sys
from collections.abc import Sequence

from conformance.commands import COMMANDS, output
from conformance.errors import UsageError
from conformance.isolation import package_shadowing
from conformance.specification.versions import SPECS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    from conformance.errors import SuiteError

    options = _parser().parse_args(arguments)
    sys.path[:0] = [os.getcwd()] if os.getcwd() not in sys.path else []
    try:
        package_shadowing.check(_words(options))
        code: int = COMMANDS[options.command].execute(options)
        return code
    except UsageError as error:
        return _complain(f"loraspec: {error}", 2)
    except SuiteError as error:
        return _complain(f"loraspec: the suite itself failed, which says nothing about the target:\n{error}", 3)
    except KeyboardInterrupt as interruption:
        return _complain(f"loraspec: interrupted; {str(interruption) or 'nothing was written'}", 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:  # such as a full disk, which says nothing about the target
        where = f": {error.filename}" if error.filename else ""
        return _complain(f"loraspec: {error.strerror or error}{where}", 3)


def _words(options: argparse.Namespace) -> list[str]:
    """Every word that the options hold, defaults included: each may name a target."""
    held = [option if isinstance(option, list) else [option] for option in vars(options).values()]
    values = [value for listed in held for value in listed]
    return [word for value in values if isinstance(value, str) for word in re.split(r"[\s,]+", value)]


def _complain(text: str, code: int) -> int:
    from conformance.report.terminal import console

    console(stderr=True).print(text)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "loraspec", description="Conformance of LoRA implementations.", epilog=output.EXIT_CODES
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"loraspec {_version()}, spec {SPECS[-1]}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        command.add(commands)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("loraspec")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
