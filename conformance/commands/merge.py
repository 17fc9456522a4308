"""`loraspec merge`: merge the reports of all shards."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.commands import output


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    merge = output.reporting(commands, "merge", "merge the reports of all shards")
    merge.add_argument("shards", metavar="DIR", type=Path, nargs="+", help="the report folder of a shard")
    output.add(merge)
    output.add_verbose(merge)


def execute(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from conformance.report.files import prepare
    from conformance.run.shard_merge import merge_shards

    prepare(options.report_dir)
    return output.show(merge_shards(options.shards, options.report_dir), options)
