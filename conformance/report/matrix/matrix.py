"""A matrix, and matrix.json: for each clause a cell for each target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.judgement.result import NOT_CLAIMED, PASS
from conformance.report.record_json import as_json

SCHEMA = Path(__file__).with_name("matrix.schema.json")
NOT_RUN = "not_run"  # the word for a cell that is None: the report of the target does not have the clause


@dataclass(frozen=True)
class DtypeSummary:
    """What became of a clause in one dtype: the worst status, the worst ratio and the cases of its trials."""

    status: str
    worst_ratio: float | None
    examples: int


@dataclass(frozen=True)
class OpenTrial:
    """A trial that does not pass. Its message is None where it is that of the cell."""

    subject: str
    dtype: str
    lane: str
    status: str
    message: str | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What became of a clause on a target.

    Attributes:
        gates: whether the clause turns the target's verdict to fail.
        case, found, message, reason: as the report has them.
        rerun: the command that checks the failing case again.
        script: the script that reproduces the failure, seen from the folder of the matrix.
        dtypes: by dtype a summary of its trials.   trials: those that do not pass.
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
    """A clause, with a cell for each target, in their order; None where the target's report lacks the clause."""

    id: str
    group: str
    level: str
    sentence: str
    cells: tuple[Cell | None, ...]

    @property
    def settled(self) -> bool:
        """Whether each target passes the clause, or does not claim it."""
        return all(cell is None or cell.status in (PASS, NOT_CLAIMED) for cell in self.cells)


@dataclass(frozen=True, kw_only=True)
class MatrixTarget:
    """A target of a matrix: its verdict, and what its report says of the run; None where it has no report.

    Attributes:
        target: the words that name it.   name, version: what it says of itself.
        problem: why the target was not judged, or how the suite failed on it.
        counts: how many clauses have each status.   worst_ratio: of the clauses that pass.
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

    @property
    def title(self) -> str:
        """The target's name, with its version where it has one."""
        return f"{self.name} {self.version}" if self.version else self.name


@dataclass(frozen=True)
class Matrix:
    """What became of each clause on each of several targets."""

    targets: tuple[MatrixTarget, ...]
    rows: tuple[Row, ...]

    @property
    def cells(self) -> list[Cell | None]:
        """All cells, row by row."""
        return [cell for row in self.rows for cell in row.cells]

    def of_group(self, name: str) -> list[tuple[int, Row]]:
        """The rows of a group, each with its number among all rows."""
        return [(number, row) for number, row in enumerate(self.rows) if row.group == name]

    @property
    def groups(self) -> list[str]:
        """The groups of the clauses, in their order."""
        return list(dict.fromkeys(row.group for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """The matrix as a JSON object, as matrix.json has it."""
        return {"targets": as_json(self.targets), "clauses": as_json(self.rows)}
