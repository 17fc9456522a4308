"""A rerun of one case: parse the line that a failure printed, and check exactly that case in this process."""

from __future__ import annotations

import json
import shlex
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.errors import SuiteError, UsageError, known
from conformance.report.report import Report
from conformance.report.verdict import failing_result
from conformance.run.execution import check_names
from conformance.run.selection import Selection, gpu_at_hand, set_interpreter
from conformance.specification import spec_page
from conformance.specification.former_ids import present


@dataclass(frozen=True)
class Line:
    """A rerun line: `CLAUSE TARGET [SUBJECT] field=value …`."""

    clause: str
    target: str
    subject: str | None
    case: str
    device: str | None = None
    lane: str | None = None


def parse(text: str) -> Line:
    """Read a line.

    Raises:
        UsageError: if the line does not have the form of a rerun line.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no case: {error}") from None
    names = []
    while words and "=" not in words[0] and words[0] != "defaults":
        names.append(words.pop(0))
    if not 2 <= len(names) <= 3:
        expected = "CLAUSE TARGET [SUBJECT] field=value …"
        raise UsageError(f"{text!r} starts with {len(names)} words without '=': expected {expected}")
    return Line(names[0], names[1], names[2] if len(names) == 3 else None, " ".join(map(shlex.quote, words)))


def from_report(path: Path, clause: str | None) -> Line:
    """The failing case of a clause in a report. Without a clause, the case of the report's first failing clause.

    Raises:
        UsageError: if the file is not a report or has no such case.
    """
    try:
        report = Report.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{str(path)!r} is no report: {type(error).__name__}: {error}") from error
    clauses = {found.id: found for found in report.clauses}
    if clause is not None:
        known([clause], clauses, f"clause in {str(path)!r}:")
    chosen = [clauses[clause]] if clause else [found for found in clauses.values() if found.case]
    result = failing_result(chosen[0]) if chosen else None
    if result is None or not chosen[0].case:
        raise UsageError(f"{str(path)!r} has no failing case" + (f" of {clause}" if clause else ""))
    return Line(chosen[0].id, report.target, result.subject, chosen[0].case, result.device, result.lane)


def check(line: Line) -> tuple[str, str]:
    """Check the line's case. Returns `pass`, `fail`, `unsupported` or `inconclusive`, and a message.

    Raises:
        UsageError: if the clause, the target, the subject or a field does not exist.
        SuiteError: if the check itself fails.
    """
    if (held := present(line.clause)) != line.clause:
        raise UsageError(
            f"{line.clause} is part of {held}, which has other cases: "
            f"judge it with `loraspec run {line.target} --clause {held}`"
        )
    lane = None if line.lane == "gpu" else line.lane
    selection = Selection(line.target, device=line.device or "cpu", lane=lane)
    check_names(Selection(line.target, clauses=(line.clause,)))
    declared = spec_page.read()
    set_interpreter(selection.lane, selection.device, gpu_at_hand())
    from conformance.judgement.outcomes import Inconclusive, Refused, Violation
    from conformance.specification.clause import load_all
    from conformance.target.check_case import check_case

    clause = load_all((declared[line.clause].group,))[line.clause]  # the other groups take seconds to import
    try:
        case = clause.cases.case_type.parse(line.case)
    except ValueError as error:
        raise UsageError(str(error)) from error
    subject = _subject(line, clause, selection)
    try:
        ratio = check_case(clause, subject, case)
    except Violation as violation:
        return "fail", str(violation)
    except Refused as refusal:
        return "unsupported", str(refusal)
    except Inconclusive as reason:
        return "inconclusive", str(reason)
    except Exception as error:
        raise SuiteError(traceback.format_exc()) from error
    return "pass", "" if ratio is None else f"worst error ÷ budget {ratio:.3g}"


def _subject(line: Line, clause: Any, selection: Selection) -> Any:
    from conformance.errors import TargetError
    from conformance.run.trial import loaded
    from conformance.target.fault import looking_at

    try:
        target = loaded(line.target, selection.device, (clause.group,))
        with looking_at(line.target):
            subjects = {subject.name: subject for subject in target.subjects(clause)}
    except TargetError as error:
        raise UsageError(str(error)) from error
    if not subjects:
        missing = ", ".join(target.lacking(clause))
        raise UsageError(f"target {line.target!r} does not claim {clause.id}: it has no {missing}")
    if line.subject is None:
        return next(iter(subjects.values()))
    known([line.subject], subjects, f"subject of {clause.id}")
    return subjects[line.subject]
