"""`loraspec matrix`: compare several targets, clause by clause."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.commands import output, run
from conformance.errors import UsageError
from conformance.run.selection import Selection

if TYPE_CHECKING:
    from conformance.report.matrix.columns import Column


def add(commands: output.Commands) -> None:
    """Add the command and its options."""
    matrix = output.reporting(commands, "matrix", "judge several targets, or show their reports, side by side")
    matrix.epilog = f"{matrix.epilog}\nWith several targets, the highest of their exit codes."
    matrix.add_argument(
        "targets",
        metavar="TARGET",
        nargs="+",
        help="a target to judge like `loraspec run`, or saved reports: a report.json, or a folder of them",
    )
    run.add_selection(matrix)
    run.add_execution(matrix)
    matrix.add_argument("--all", action="store_true", help="also show clauses that all targets pass or do not claim")
    output.add(matrix)


def execute(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from conformance.report import files
    from conformance.report.matrix import markdown, page, table
    from conformance.report.matrix.assemble import assemble, exit_code

    asked = _asked(options)
    files.prepare(options.report_dir)
    columns = [
        _judged(one, options, f"{number} of {len(asked)}, ") if isinstance(one, Selection) else one
        for number, one in enumerate(asked, start=1)
    ]
    found = assemble(columns)
    text = json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    files.replace(options.report_dir / "report.html", page.document(columns))
    files.replace(options.report_dir / "matrix.md", markdown.document(found))
    files.replace(options.report_dir / "matrix.json", text)
    if options.json:
        sys.stdout.write(text)
    else:
        table.show(found, options.report_dir, quiet=options.quiet, whole=options.all)
    return exit_code(columns)


def _asked(options: argparse.Namespace) -> list[Selection | Column]:
    """The meaning of each argument: a target to judge, or the columns of the reports that it names.

    Raises:
        UsageError: for a target or report that is given twice, a file that is not a report, or a wrong option. The
            error is raised before any target runs.
    """
    from conformance.report.matrix import saved_reports

    asked: dict[Selection | Path, Selection | Column] = {}
    for word in options.targets:
        found = saved_reports.reports(Path(word)) if saved_reports.is_report(word) else [run.selected(options, word)]
        for one in found:
            if one in asked:
                raise UsageError(f"{word!r} is given twice: expected each target and each report once")
            asked[one] = saved_reports.read(one, options.report_dir) if isinstance(one, Path) else one
    return list(asked.values())


def _judged(selection: Selection, options: argparse.Namespace, title: str) -> Column:
    """Judge a target and return its column. If the target cannot be judged, the column contains the reason."""
    from conformance.errors import SuiteError
    from conformance.report.matrix import saved_reports
    from conformance.report.matrix.columns import Column
    from conformance.run import run_target

    target, into = selection.target, options.report_dir
    folder = into / target.replace(":", "-")
    try:
        run_target.judge(selection, folder, run.manner(options, f"{title}{target}: "))
    except UsageError as error:
        return Column(target, 2, problem=str(error))
    except SuiteError as error:
        return Column(target, 3, problem=f"the suite itself failed, which says nothing about the target:\n{error}")
    return saved_reports.read(folder / "report.json", into)
