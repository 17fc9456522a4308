"""The files of a report folder: report.json, report.html, junit.xml, and a script for each failure."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from conformance.errors import UsageError
from conformance.judgement.result import DEVIATION, FAIL
from conformance.report.report import Report


def prepare(folder: Path) -> None:
    """Make the report folder.

    Raises:
        UsageError: if the folder is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot write reports to {str(folder)!r}: {error.strerror or error}") from error


def finish(report: Report, seconds: float) -> Report:
    """The report with the seconds of the run and the present date in UTC."""
    return dataclasses.replace(report, seconds=seconds, date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


def write(folder: Path, report: Report, scripts: Mapping[str, str]) -> None:
    """Write all files of a report. Each file is replaced atomically. Old scripts of other clauses are removed.

    Args:
        scripts: for each failing clause, the script that reproduces its failure.
    """
    from conformance.report import junit
    from conformance.report.matrix import page
    from conformance.report.matrix.columns import Column

    texts = {
        "junit.xml": junit.document(report),
        "report.html": page.document([Column.of(report, scripts)]),
        "report.json": json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    failed = {clause.id for clause in report.clauses if clause.status in (FAIL, DEVIATION)}
    for old in folder.glob("repro_*.py"):
        if old.stem.removeprefix("repro_") not in failed & set(scripts):
            old.unlink()
    for clause in sorted(failed & set(scripts)):
        replace(folder / f"repro_{clause}.py", scripts[clause])
    for name, text in texts.items():
        replace(folder / name, text)


def replace(path: Path, text: str) -> None:
    """Write a file atomically: write a temporary file beside it, then rename that."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
