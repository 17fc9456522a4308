"""A report in GitHub Actions: annotations at the target's own source, and the job's summary.

An annotation is a line on standard error in the form of a workflow command, so that `--json` stays JSON.
Source: docs.github.com, "Workflow commands for GitHub Actions".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from conformance.judgement.result import FAIL, PASS
from conformance.report import features, terminal
from conformance.report.causes import Cause
from conformance.report.diagnosis import led
from conformance.report.plan import Sources
from conformance.report.report import Report, ReportedClause
from conformance.report.verdict import failing_result, gates

SHOWN = 10  # annotations of one kind that GitHub keeps for each step


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether this process is a step of a GitHub workflow."""
    return environment.get("GITHUB_ACTIONS") == "true"


def announce(report: Report, sources: Sources, folder: Path, environment: Mapping[str, str]) -> None:
    """Write an annotation for each cause, and append the run to the job's summary if there is one."""
    root = Path(environment.get("GITHUB_WORKSPACE") or os.getcwd()).resolve()
    for line in commands(report, sources, folder, root):
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    if path := environment.get("GITHUB_STEP_SUMMARY"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(summary(report))


def commands(report: Report, sources: Sources, folder: Path, root: Path) -> list[str]:
    """A workflow command for each cause: an error for MUST, a warning for SHOULD; at most `SHOWN` of each."""
    found: dict[str, list[str]] = {"error": [], "warning": []}
    for clause, cause in led(report):
        kind = "error" if gates(clause) else "warning"
        properties = {"title": f"{clause.id} {clause.status}"}
        result = failing_result(clause)
        place = sources.get(result.subject) if result else None
        if place is not None and Path(place[0]).is_relative_to(root):
            properties = {"file": str(Path(place[0]).relative_to(root)), "line": str(place[1]), **properties}
        listed = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties.items())
        text = "\n".join(terminal.failure(clause, report, folder, cause))
        found[kind].append(f"::{kind} {listed}::{_escaped(text)}")
    return [line for lines in found.values() for line in lines[:SHOWN]]


def _escaped(text: str, more: str = "") -> str:
    for sign in f"%\r\n{more}":
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text


def summary(report: Report) -> str:
    """The run in Markdown: its verdict, a row for each group, and the failing clauses."""
    rows = ["| group | pass | fail | others | worst ÷ budget |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, group in report.groups.items():
        if group.claimed:
            passing, failing = group.counts.get(PASS, 0), group.counts.get(FAIL, 0)
            rest = sum(group.counts.values()) - passing - failing
            rows.append(f"| {name} | {passing} | {failing} | {rest} | {terminal.ratio(group.worst_ratio)} |")
    listed = [line for clause, cause in led(report) for line in _cause(clause, cause)]
    claims = features.line(report)
    about = [claims, ""] if claims else []
    return "\n".join([f"### {terminal.verdict(report)}", "", *about, *rows, "", *listed, ""])


def _cause(clause: ReportedClause, cause: Cause) -> list[str]:
    """A cause in Markdown: its leading clause, what fails like it, and what follows, folded."""
    lines = [f"- **{clause.id}** ({clause.level}) {clause.status}: {clause.sentence}"]
    if cause.fits:
        lines.append(f"  - {cause.sentence}")
    if cause.follows:
        many = f"{len(cause.follows)} clause{'s' * (len(cause.follows) > 1)}"
        lines.append(f"  - <details><summary>follows: {many}</summary>{', '.join(cause.follows)}</details>")
    return lines
