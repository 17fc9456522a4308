"""Reports on disk, read as columns of a matrix."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from conformance.errors import UsageError
from conformance.judgement.result import STATUSES
from conformance.report.matrix.assemble import assemble
from conformance.report.matrix.columns import Column
from conformance.report.report import Report

_REQUIRED = ("target", "versions", "device", "spec", "profile", "verdict", "groups", "clauses")


def is_report(word: str) -> bool:
    """Whether an argument names reports on disk (a path, a JSON file, a folder without a package), not a target."""
    named = re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d][\w.]*)?", word)
    if word.endswith(".json") or (not named and not word.endswith(".py")):
        return True
    folder = Path(word)
    return folder.is_dir() and (not (folder / "__init__.py").exists() or (folder / "report.json").exists())


def reports(path: Path) -> list[Path]:
    """The report files of a path: a file itself, the report.json of a report folder, or all reports in a folder.

    Raises:
        UsageError: if a folder has no report.
    """
    if not path.is_dir():
        return [path]
    if (path / "report.json").is_file():
        return [path / "report.json"]
    found = [file for file in path.rglob("*.json") if file.name == "report.json" or _looks_right(_parsed(file))]
    if not found:
        raise UsageError(f"{str(path)!r} holds no report.json, nor another file that is a report")
    return sorted(found, key=_natural)


def read(path: Path, into: Path) -> Column:
    """The column of a report file and its reproducers, which are beside report.json, or in `0.21/` for `0.21.json`.

    Args:
        into: the folder of the matrix; paths of reproducers are relative to it.

    Raises:
        UsageError: if the file is not a report.
    """
    beside = path.parent if path.name == "report.json" else path.with_suffix("")
    scripts = {p.stem.removeprefix("repro_"): p.read_text(encoding="utf-8") for p in beside.glob("repro_*.py")}
    return Column.of(load(path), scripts, Path(os.path.relpath(beside, into)).as_posix() + "/")


def load(path: Path) -> Report:
    """The report in a file.

    Raises:
        UsageError: if the file is not a report.
    """
    found = _parsed(path)
    if not _looks_right(found):
        raise UsageError(f"{str(path)!r} is no report of `loraspec run`: expected {', '.join(_REQUIRED)} in it")
    try:
        unknown = {str(clause["status"]) for clause in found["clauses"]} - set(STATUSES)
        if unknown:
            raise UsageError(f"{str(path)!r} has the status {min(unknown)!r}: expected one of {', '.join(STATUSES)}")
        report = Report.from_json(found)
        assemble([Column.of(report, {})])  # raises if a value has a wrong type
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{str(path)!r} is no report: {type(error).__name__}: {error}") from error
    return report


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(path)!r} is no report: {type(error).__name__}: {error}") from error


def _looks_right(report: Any) -> bool:
    return isinstance(report, dict) and all(name in report for name in _REQUIRED)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sort key that puts 0.9 before 0.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]
