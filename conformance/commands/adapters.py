"""`loraspec adapters`: judge loaders of adapters by golden files, each with the exact ΔW of every parameter."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from conformance.commands import output
from conformance.errors import UsageError

if TYPE_CHECKING:
    from conformance.adapters.table import Column

EXIT_CODES = """\
exit codes: 0 every golden adapter is right or refused with a clear error; 1 one is wrong, or its error does not say
what is refused; 2 usage, or a target does not import, has no loader, or loads no adapter; 3 the suite itself failed.
With several targets, the highest of their exit codes."""


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    adapters = output.reporting(commands, "adapters", "judge loaders of adapters by golden files")
    adapters.epilog = EXIT_CODES
    adapters.add_argument(
        "targets", metavar="TARGET", nargs="+", help="a module with load_adapter_deltas(model, path) or load_adapter"
    )
    adapters.add_argument(
        "--adapter",
        action="append",
        metavar="NAME[,NAME…]",
        help="only these golden adapters; wildcards, as in 'rank*'",
    )
    output.add(adapters)


def execute(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from conformance.adapters import table
    from conformance.report import files
    from conformance.report.terminal import console

    chosen = _chosen(options.adapter)
    repeated = {name for name in options.targets if options.targets.count(name) > 1}
    if repeated:
        raise UsageError(f"{', '.join(sorted(repeated))} is given twice: expected each target once")
    files.prepare(options.report_dir)
    columns = [_column(target, chosen) for target in options.targets]
    text = json.dumps(table.to_json(columns), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    files.replace(options.report_dir / "adapters.json", text)
    files.replace(options.report_dir / "adapters.md", table.markdown(columns))
    if options.json:
        sys.stdout.write(text)
    else:
        table.show(columns, quiet=options.quiet)
        console().print(f"report   {options.report_dir / 'adapters.json'}")
    return max(column.exit_code() for column in columns)


def _chosen(words: list[str] | None) -> list[str]:
    """The names of the golden adapters to judge.

    Raises:
        UsageError: for a name that matches none.
    """
    from fnmatch import fnmatchcase

    from conformance.adapters.catalogue import BY_NAME
    from conformance.errors import matched

    patterns = [word.strip() for item in words or ["*"] for word in item.split(",")]
    matched(patterns, BY_NAME, "golden adapter")
    return [name for name in BY_NAME if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _column(spec: str, chosen: list[str]) -> Column:
    """Judge one target; the column has the reason where it cannot be judged."""
    from conformance.adapters.catalogue import BY_NAME
    from conformance.adapters.judgement import judged
    from conformance.adapters.loader import Loader
    from conformance.adapters.table import Column
    from conformance.errors import TargetError

    try:
        loader = Loader.load(spec)
    except TargetError as error:
        return Column(spec, spec, None, problem=str(error))
    cells = {name: judged(loader, BY_NAME[name]) for name in chosen}
    return Column(spec, loader.target.name, loader.target.version, cells)
