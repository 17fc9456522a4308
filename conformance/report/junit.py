"""JUnit XML of a report, for CI systems: a suite for each group, a test case for each trial."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from conformance.judgement.result import FAIL, NOT_CLAIMED, PASS
from conformance.report.report import Report, ReportedClause, ReportedResult
from conformance.report.verdict import FAILING, gates


def document(report: Report) -> str:
    """The report as a JUnit XML document."""
    root = ET.Element("testsuites", name=f"loraspec {report.target}")
    for group in report.groups:
        cases = [case for clause in report.clauses if clause.group == group for case in _cases(clause)]
        count = {tag: sum(case.find(tag) is not None for case in cases) for tag in ("failure", "skipped")}
        suite = ET.SubElement(
            root,
            "testsuite",
            name=group,
            tests=str(len(cases)),
            failures=str(count["failure"]),
            skipped=str(count["skipped"]),
            errors="0",
        )
        suite.extend(cases)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _cases(clause: ReportedClause) -> list[ET.Element]:
    if clause.status == NOT_CLAIMED:
        case = ET.Element("testcase", classname=clause.group, name=clause.id, time="0")
        _outcome(case, "skipped", f"not claimed: {clause.message}")
        return [case]
    return [_case(clause, result) for result in clause.results]


def _case(clause: ReportedClause, result: ReportedResult) -> ET.Element:
    name = f"{clause.id} {result.subject} {result.dtype}"
    case = ET.Element("testcase", classname=clause.group, name=name, time=str(result.seconds))
    text = str(clause.message if clause.stale else result.message or result.status)
    if clause.stale or (result.status in FAILING and gates(clause)):
        _outcome(case, "failure", text)
    elif result.status != PASS:
        reason = clause.reason or (clause.level if result.status == FAIL else None)
        _outcome(case, "skipped", f"{reason}: {text}" if reason else text)
    return case


def _outcome(case: ET.Element, tag: str, text: str) -> None:
    clean = re.sub(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]", "�", text)
    ET.SubElement(case, tag, message=clean.splitlines()[0] if clean else "").text = clean
