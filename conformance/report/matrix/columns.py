"""A column of a matrix: a target with its report, or with the reason why it has no report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from conformance.report.report import Report, ReportedClause
from conformance.report.verdict import exit_code


@dataclass(frozen=True)
class Column:
    """One target in a matrix.

    Attributes:
        target: the target's specifier.   code: the exit code of its run.
        report: None if the target could not be judged.
        problem: why the target could not be judged, or how the suite failed on it.
        scripts: for each failing clause, the script that reproduces its failure.
        folder: the folder of the scripts, relative to the matrix; ends in `/` unless empty.
    """

    target: str
    code: int
    report: Report | None = None
    problem: str | None = None
    scripts: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""

    @classmethod
    def of(cls, report: Report, scripts: Mapping[str, str], folder: str = "") -> Column:
        """The column of a report."""
        problem = "\n".join(f"the suite failed at {error.where}:\n{error.traceback}" for error in report.errors)
        return cls(report.target, exit_code(report), report, problem or None, scripts, folder)

    @property
    def name(self) -> str:
        """The target's own name, or else its specifier."""
        return (self.report.target_name if self.report else None) or self.target

    @property
    def clauses(self) -> tuple[ReportedClause, ...]:
        """The clauses of the report."""
        return self.report.clauses if self.report else ()

    def script_path(self, clause: str) -> str | None:
        """The path of a clause's reproducer, relative to the matrix."""
        return f"{self.folder}repro_{clause}.py" if clause in self.scripts else None
