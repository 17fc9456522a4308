"""A column of a matrix: a target with its report, or with the reason why it has none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conformance.report.report import exit_code


@dataclass(frozen=True)
class Column:
    """One target in a matrix.

    Attributes:
        target: as it is asked for.   code: the exit code of its run.
        report: its report; None where it could not be judged.   problem: why not, or how the suite failed on it.
        scripts: by clause the script that reproduces its failure.
        folder: where the scripts are, seen from the matrix; ends in `/` unless empty.
    """

    target: str
    code: int
    report: dict[str, Any] | None = None
    problem: str | None = None
    scripts: dict[str, str] = field(default_factory=dict)
    folder: str = ""

    @classmethod
    def of(cls, report: dict[str, Any], scripts: dict[str, str], folder: str = "") -> Column:
        """The column of a report."""
        errors = report.get("errors", [])
        problem = "\n".join(f"the suite failed at {error['where']}:\n{error['traceback']}" for error in errors)
        code = exit_code({**report, "errors": errors})
        return cls(str(report["target"]), code, report, problem or None, scripts, folder)

    @property
    def name(self) -> str:
        """What it calls itself."""
        return str((self.report or {}).get("target_name") or self.target)

    @property
    def clauses(self) -> list[dict[str, Any]]:
        """Its judged clauses."""
        return self.report["clauses"] if self.report else []

    def script_path(self, clause: str) -> str | None:
        """Where the reproducer of a clause is, seen from the matrix."""
        return f"{self.folder}repro_{clause}.py" if clause in self.scripts else None
