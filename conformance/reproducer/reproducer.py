"""Reproducers: a failing case as a script that needs torch and the target, but not the suite.

A short script makes the calls of the check; what cannot be said so is a script with the check's own code.
"""

from __future__ import annotations

import textwrap

from conformance.judgement.result import Result
from conformance.reproducer.call_script import call_script
from conformance.reproducer.check_script import replay
from conformance.reproducer.module_source import NoSource
from conformance.reproducer.short_script import short_script
from conformance.specification.clause import Clause
from conformance.target.object_target import is_object
from conformance.target.subject import Subject

KEEP_CALLS = ("life",)  # groups whose checks keep the code that they run on the target


def script(clause: Clause, subject: Subject, target: str, result: Result) -> str | None:
    """A script that exits with 1 while the defect is present and with 0 once it is fixed.

    It needs the suite only if neither form can be written, because the check has no source. For an object in memory,
    which no other process can import as a target, there is the short form or None.
    """
    header = _header(clause, target, result)
    kept = call_script(clause, subject, target, result, header) if clause.group in KEEP_CALLS else None
    short = kept or short_script(clause, subject, target, result)
    if short is not None or is_object(target):
        return short
    try:
        return replay(clause, subject, target, result, header)
    except NoSource:
        return _through_suite(clause, target, result)


def _through_suite(clause: Clause, target: str, result: Result) -> str:
    words = ["rerun", f"{result.clause} {target} {result.subject} {result.case}"]
    if result.device != "cpu":
        words += ["--device", result.device]
    else:
        words += ["--lane", result.lane]
    return (
        f'"""{_header(clause, target, result)}\n\n'
        "The source of this check is not available, so the script runs the suite (pip install loraspec).\n"
        '"""\n\n'
        "import sys\n\n"
        "from conformance.cli import main\n\n"
        f"sys.exit(main({words!r}))\n"
    )


def _header(clause: Clause, target: str, result: Result) -> str:
    """The beginning of a script's docstring."""
    text = (
        f"{clause.id}: {clause.sentence}\n\n"
        f"Target {target}, {result.subject}, {result.dtype}, {result.device}; case {result.case}\n"
        "Exits with 1 while the defect is present and with 0 once it is fixed. The target must be importable.\n\n"
        f"When this script was written, the defect was:\n{textwrap.indent(result.message or '', '    ')}"
    ).replace("\\", "\\\\")
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return shown.replace('"""', '\\"\\"\\"').rstrip()
