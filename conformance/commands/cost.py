"""`loraspec cost`: estimate the cost of a million cases, and of a profile on several machines, from a run's times."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from conformance.commands import output
from conformance.run.profiles import PROFILES

if TYPE_CHECKING:
    from conformance.report.report import Report
    from conformance.run.cost import Cost, Fleet


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    cost = commands.add_parser("cost", help="estimate the cost of a million cases from the times of a run")
    cost.add_argument("report", metavar="REPORT", help="a report.json, or its folder")
    cost.add_argument("--profile", choices=tuple(PROFILES), default="nightly", help="the profile; default nightly")
    cost.add_argument(
        "--record", action="store_true", help="save these times as the expected times of the clauses (in a checkout)"
    )
    cost.add_argument("--shards", metavar="N", type=_count, default=1, help="the number of machines; default 1")


def execute(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from pathlib import Path

    from conformance.errors import UsageError
    from conformance.report.matrix import saved_reports
    from conformance.run import cost, expected_seconds

    found = saved_reports.reports(Path(options.report))
    if len(found) > 1:
        raise UsageError(f"{options.report!r} holds {len(found)} reports: expected one")
    report = saved_reports.load(found[0])
    if options.record:
        expected_seconds.record(report)
    _show(report, cost.by_group(report), cost.fleet(report, options.profile, options.shards))
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least 1")
    return int(text)


def _show(report: Report, groups: dict[tuple[str, str], Cost], plan: Fleet) -> None:
    from conformance.report.terminal import console
    from conformance.run.progress import duration

    out = console()
    out.print(f"{report.target}, profile {report.profile}, {report.device_name}; times are of one process")
    out.print(_table(groups))
    (clause, subject, dtype), longest = plan.trial
    whole = f"{plan.whole.cases:,} cases, {duration(plan.whole.seconds)} of one process"
    out.print(
        f"profile {plan.profile}: {whole}; {plan.shards} shards: the longest takes {duration(plan.longest.seconds)}"
    )
    out.print(f"no shard is shorter than its longest trial: {clause} {subject} {dtype}, {duration(longest)}")


def _table(groups: dict[tuple[str, str], Cost]) -> Any:
    from rich import box
    from rich.table import Table

    from conformance.run.cost import Cost

    table = Table("group", "lane", box=box.SIMPLE_HEAD)
    for name in ("cases", "seconds", "ms per case", "hours per million"):
        table.add_column(name, justify="right")
    whole = Cost(sum(cost.cases for cost in groups.values()), sum(cost.seconds for cost in groups.values()))
    for (group, lane), cost in {**groups, ("all", ""): whole}.items():
        seconds = f"{cost.seconds:,.1f}", f"{cost.seconds / cost.cases * 1000:.3g}"
        table.add_row(group, lane, f"{cost.cases:,}", *seconds, f"{cost.hours_per_million:.3g}")
    return table
