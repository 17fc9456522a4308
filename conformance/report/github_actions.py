"""What GitHub Actions shows of a run: annotations at the target's own source, and the job's summary.

An annotation is a line on standard error in the form of a workflow command, so that `--json` stays JSON.
Source: docs.github.com, "Workflow commands for GitHub Actions".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformance.judgement.result import CRASHED, FAIL, INCONCLUSIVE
from conformance.report import terminal
from conformance.report.report import failing, gates

SHOWN = 10  # annotations of one kind that GitHub keeps from a step


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether this is a step of a GitHub workflow."""
    return environment.get("GITHUB_ACTIONS") == "true"


def announce(
    report: dict[str, Any], sources: dict[str, list[Any]], folder: Path, environment: Mapping[str, str]
) -> None:
    """Write an annotation for each failing clause, and add the run to the job's summary where there is one.

    Args:
        sources: by subject the file and line of its definition, as `places.defined` finds them.
    """
    root = Path(environment.get("GITHUB_WORKSPACE") or os.getcwd()).resolve()
    for line in commands(report, sources, folder, root):
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    if path := environment.get("GITHUB_STEP_SUMMARY"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(summary(report))


def commands(report: dict[str, Any], sources: dict[str, list[Any]], folder: Path, root: Path) -> list[str]:
    """A workflow command for each failing clause, MUST as error and SHOULD as warning, as many as GitHub keeps."""
    bad = [clause for clause in report["clauses"] if clause["status"] in (FAIL, CRASHED, INCONCLUSIVE)]
    found: dict[str, list[str]] = {"error": [], "warning": []}
    for clause in bad:
        kind = "error" if gates(clause) else "warning"
        properties = {"title": f"{clause['id']} {clause['status']}"}
        place = sources.get(failing(clause).get("subject", ""))
        if place is not None and Path(place[0]).is_relative_to(root):
            properties = {"file": str(Path(place[0]).relative_to(root)), "line": str(place[1]), **properties}
        listed = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties.items())
        text = "\n".join(terminal.failure(clause, report, folder))
        found[kind].append(f"::{kind} {listed}::{_escaped(text)}")
    return [line for lines in found.values() for line in lines[:SHOWN]]


def _escaped(text: str, more: str = "") -> str:
    for sign in f"%\r\n{more}":
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text


def summary(report: dict[str, Any]) -> str:
    """The run in Markdown: its verdict, a row for each group, and the clauses that fail."""
    rows = ["| group | pass | fail | others | worst ÷ budget |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, group in report["groups"].items():
        if group["claimed"]:
            passing, bad = group["counts"].get("pass", 0), group["counts"].get(FAIL, 0)
            rest = sum(group["counts"].values()) - passing - bad
            rows.append(f"| {name} | {passing} | {bad} | {rest} | {terminal.ratio(group['worst_ratio'])} |")
    bad = [clause for clause in report["clauses"] if clause["status"] in (FAIL, CRASHED, INCONCLUSIVE)]
    listed = [f"- **{clause['id']}** ({clause['level']}) {clause['status']}: {clause['sentence']}" for clause in bad]
    return "\n".join([f"### {terminal.verdict(report)}", "", *rows, "", *listed, ""])
