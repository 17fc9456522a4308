"""A short script for a failing case: the check runs once on a tape, and what shows the defect is written down."""

from __future__ import annotations

import textwrap
from functools import partial
from typing import Any

import reference
from conformance.cases.reproducer_marks import KEEPING, ON_RANKS
from conformance.judgement.outcomes import Refused, Violation
from conformance.judgement.result import Result
from conformance.reproducer.code_owner import wrapper
from conformance.reproducer.hooked_code import hooked
from conformance.reproducer.judged_calls import RECORDERS, made_anew, seeded
from conformance.reproducer.literals import WIDTH
from conformance.reproducer.rank_records import ranked
from conformance.reproducer.rank_script import rank_script
from conformance.reproducer.reduction import CANNOT, Reduction
from conformance.reproducer.steps import Failure
from conformance.reproducer.straight_script import Script
from conformance.reproducer.tape import Tape
from conformance.specification.clause import Clause
from conformance.target.check_case import check_case
from conformance.target.object_target import is_object
from conformance.target.subject import Subject

ELSEWHERE = ("remote",)  # groups whose checks call the target in other processes

LONG = 80  # lines


def short_script(clause: Clause, subject: Subject, target: str, result: Result) -> str | None:
    """A script that makes the calls of the check itself, or None if the failure cannot be said so.

    It shows the defect on the target; where `reference` has the target's names, it shows none on `reference`. Where it
    gets long with the suite's functions that read and write files, it has what they do instead, if that is shorter.
    """
    text = _written(clause, subject, target, result, files=True)
    if text is None or text.count("\n") <= LONG:
        return text
    other = _written(clause, subject, target, result, files=False)
    return min(filter(None, (text, other)), key=lambda each: each.count("\n"))


def _written(clause: Clause, subject: Subject, target: str, result: Result, *, files: bool) -> str | None:
    if result.case is None or clause.group in ELSEWHERE:
        return None
    with wrapper(subject.target) as is_wrapper:
        tape = Tape(subject, [*RECORDERS, *_marked()])
        tape.calls.files = files
        case = clause.cases.case_type.parse(result.case)
        seeded(tape, case.seed)  # by which the check draws too
        try:
            with hooked(tape, clause.check, type(subject), subject.thing):
                check_case(clause, subject, case)
            return None
        except (Violation, Refused) as found:
            message = str(found)
        except Exception:  # noqa: BLE001  (the case decides nothing, or the check does not bear the tape)
            return None
        tape.paused += 1
        docstring = header(clause, _called(subject, target), result)
        comparable = not is_wrapper and hasattr(reference, subject.name)
        possible: list[Failure | None] = [*failures(tape, comparable=comparable)]
        for failure in possible or [None] * bool(tape.ranks):
            given: dict[str, Any] = {"header": docstring, "target": target, "title": clause.id, "message": message}
            try:
                if tape.ranks:
                    script: Script = rank_script(tape, failure, **given)
                else:
                    assert failure is not None
                    script = Script(tape, failure, interpreted=subject.lane == "interpreter", **given)
                text = Reduction(script, comparable=comparable).text()
            except CANNOT:
                continue
            if text is not None:
                return text
    return None


def _marked() -> list[tuple[Any, Any]]:
    """The marked functions of the suite, each with its recorder."""
    found = [(function, partial(ranked, function=function)) for function in ON_RANKS]
    return [*found, *((function, partial(made_anew, function=function)) for function in KEEPING)]


def failures(tape: Tape, *, comparable: bool) -> list[Failure]:
    """What may have failed: what the tape saw fail last, or else that the target's last call should have raised.

    The second is a guess, which only a comparison with `reference` confirms.
    """
    if not comparable:
        return tape.failures[-1:]
    calls = [step for step in tape.steps if step.effect and step.is_targets]
    silent = [Failure("returned", step=step, types=(Exception,)) for step in calls[-1:] if step.raised is None]
    return [*tape.failures[-1:], *silent]


def _called(subject: Subject, target: str) -> str:
    """The target as the docstring calls it: an object in memory by its own name."""
    declared = getattr(subject.target, "CONFORMANCE", {})
    return str(declared.get("name", target)) if is_object(target) else target


def header(clause: Clause, target: str, result: Result) -> str:
    """The docstring of a script: the clause, the case, and what was seen."""
    sentence = textwrap.wrap(f"{clause.id}: {clause.sentence}", WIDTH)
    where = f"{target}, {result.subject}, {result.dtype}, {result.device}; case {result.case}"
    seen = [line for line in (result.message or "").splitlines()[:2] if not line.startswith(("nearby", "at first"))]
    lines = [*sentence, "", *textwrap.wrap(where, WIDTH), *(textwrap.shorten(line, WIDTH) for line in seen)]
    lines.append("Exits with 1 while the defect is present, and with 0 once it is mended.")
    text = "\n".join(lines).replace("\\", "\\\\")
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return shown.replace('"""', '\\"\\"\\"')
