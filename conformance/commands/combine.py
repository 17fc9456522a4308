"""`loraspec combine`: put the reports of all shards together."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.commands import output


def add(commands: output.Commands) -> None:
    """Its options."""
    combine = output.reporting(commands, "combine", "put the reports of all shards together")
    combine.add_argument("shards", metavar="DIR", type=Path, nargs="+", help="the report folder of a shard")
    output.add(combine)


def execute(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from conformance import combine, report

    report.prepare(options.report_dir)
    return output.show(combine.combine(options.shards, options.report_dir), options)
