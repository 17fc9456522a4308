"""A matrix, and matrix.json: a cell for each clause and target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.judgement.result import NOT_CLAIMED, PASS
from conformance.report.record_json import as_json

SCHEMA = Path(__file__).with_name("matrix.schema.json")
NOT_RUN = "not_run"  # the status of a cell that is None, because the target's report lacks the clause


@dataclass(frozen=True)
class DtypeSummary:
    """The trials of a clause in one dtype: their worst status, their worst ratio and their number of cases."""

    status: str
    worst_ratio: float | None
    examples: int


@dataclass(frozen=True)
class OpenTrial:
    """A trial that does not pass. Its message is None if it equals the cell's message."""

    subject: str
    dtype: str
    lane: str
    status: str
    message: str | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The result of a clause on a target.

    Attributes:
        gates: whether the clause makes the target's verdict a failure.
        case, found, message, reason: the fields of the report's clause.
        rerun: the command that reruns the failing case.
        script: the path of the script that reproduces the failure, relative to the matrix.
        dtypes: a summary of the trials in each dtype.   trials: the trials that do not pass.
    """

    status: str
    gates: bool
    worst_ratio: float | None
    examples: int
    inconclusive: int
    case: str | None
    found: str | None
    message: str | None
    reason: str | None
    rerun: str | None
    script: str | None
    dtypes: Mapping[str, DtypeSummary]
    trials: tuple[OpenTrial, ...]


@dataclass(frozen=True)
class Row:
    """A clause with a cell for each target, in order. A cell is None if the target's report lacks the clause."""

    id: str
    group: str
    level: str
    sentence: str
    cells: tuple[Cell | None, ...]

    @property
    def settled(self) -> bool:
        """Whether each target passes the clause or does not claim it."""
        return all(cell is None or cell.status in (PASS, NOT_CLAIMED) for cell in self.cells)


@dataclass(frozen=True, kw_only=True)
class MatrixTarget:
    """A target of a matrix: its verdict, and the fields of its report about the run, which are None without a report.

    Attributes:
        target: the target's specifier.   name, version: the target's own name and version.
        problem: why the target was not judged, or how the suite failed on it.
        counts: how many clauses have each status.   worst_ratio: the worst ratio of the passing clauses.
        claims: how many clauses of the core pass, and each feature, in words; empty in older reports.
        forms: what is missing or of another form in the target's layers.
    """

    target: str
    name: str
    version: str | None
    verdict: str
    problem: str | None
    versions: Mapping[str, str | None] | None
    device: str | None
    device_name: str | None
    lane: str | None
    spec: str | None
    profile: str | None
    seed: int | None
    shard: str | None
    date: str | None
    seconds: float | None
    counts: Mapping[str, int]
    worst_ratio: float | None
    examples: int
    claims: str = ""
    forms: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The target's name and, if known, its version."""
        return f"{self.name} {self.version}" if self.version else self.name


@dataclass(frozen=True)
class Matrix:
    """The result of each clause on each of several targets."""

    targets: tuple[MatrixTarget, ...]
    rows: tuple[Row, ...]

    @property
    def cells(self) -> list[Cell | None]:
        """All cells, row by row."""
        return [cell for row in self.rows for cell in row.cells]

    def of_group(self, name: str) -> list[tuple[int, Row]]:
        """The rows of a group, each with its index among all rows."""
        return [(number, row) for number, row in enumerate(self.rows) if row.group == name]

    @property
    def groups(self) -> list[str]:
        """The groups of the clauses, in their order."""
        return list(dict.fromkeys(row.group for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """The matrix as a JSON object, in the format of matrix.json."""
        return {"targets": as_json(self.targets), "clauses": as_json(self.rows)}
