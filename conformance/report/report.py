"""The report of a run, and report.json: the clauses by group, each with the results of its trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.report import record_json
from conformance.report.causes import Cause
from conformance.report.record_json import as_json
from conformance.target.layer_form import LayerForm

SCHEMA = Path(__file__).with_name("report.schema.json")


@dataclass(frozen=True, kw_only=True)
class ReportedResult:
    """The result of a trial.

    Attributes:
        worst_ratio: the largest error ÷ budget of all cases; None if no numbers were compared.
        examples: conclusive cases.   inconclusive: cases on which a wrong result would also pass.
        launches: kernels that Triton's interpreter ran.   seconds: None in a report that is saved without its times.
        case: the failing case, shrunk.   found: the failing case as it was drawn.
        met: the runs of operations that lives have met, one bit each, as a hexadecimal number.
    """

    subject: str
    dtype: str
    device: str
    lane: str
    status: str
    worst_ratio: float | None
    examples: int
    inconclusive: int = 0
    launches: int = 0
    seconds: float | None = None
    case: str | None = None
    found: str | None = None
    message: str | None = None
    met: str | None = None

    @property
    def cases(self) -> int:
        """The number of all cases, conclusive or not."""
        return self.examples + self.inconclusive

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return _without_none(as_json(self), "seconds", "met")


@dataclass(frozen=True, kw_only=True)
class ReportedClause:
    """A clause: its status, which is the status of its worst trial, and sums over its trials.

    Attributes:
        case, found, message: the values of the trial that decides the status.
        stale: whether the target declares a deviation from the clause, but the clause no longer fails.
        reason: the target's reason for the deviation; None without a declared deviation.
    """

    id: str
    group: str
    level: str
    sentence: str = ""
    feature: str = ""
    status: str
    worst_ratio: float | None
    examples: int
    inconclusive: int
    launches: int = 0
    case: str | None
    found: str | None = None
    message: str | None
    results: tuple[ReportedResult, ...]
    stale: bool = False
    reason: str | None = None

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ReportedClause:
        """The clause, read from a JSON object."""
        results = tuple(record_json.from_json(ReportedResult, result) for result in found["results"])
        return record_json.from_json(cls, {**found, "results": results})

    def to_json(self) -> dict[str, Any]:
        """The clause as a JSON object. It omits `stale` if false, and `reason` if None."""
        found: dict[str, Any] = as_json(self)
        found["results"] = [result.to_json() for result in self.results]
        if not self.stale:
            del found["stale"]
        if not self.feature:
            del found["feature"]
        return _without_none(found, "reason")


@dataclass(frozen=True, kw_only=True)
class ReportedGroup:
    """A group of clauses: whether the target claims it, and sums over its clauses.

    Attributes:
        missing: the names that the target lacks for the group.   counts: how many clauses have each status.
    """

    claimed: bool
    missing: tuple[str, ...] = ()
    status: str
    counts: Mapping[str, int]
    worst_ratio: float | None = None
    examples: int = 0


@dataclass(frozen=True)
class Claim:
    """The clauses of the core or of a feature: how many pass, and how many were judged."""

    passed: int
    judged: int


@dataclass(frozen=True, order=True)
class SuiteFailure:
    """A failure of the suite itself: where it happened, and its traceback."""

    where: str
    traceback: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """The report of a run, or of one shard of it.

    Attributes:
        target: the target as given to the command, `package.module` or `package.module:attribute`.
        versions: the versions of Python and of the packages that the run depends on, by name.
        lane: the lane to which the run was restricted; None for all.
        shard: `i/n` for the i-th of n parts of the trials; None for the whole.
        core, features: how many of the MUST clauses pass, for the core and for each feature; None in older reports.
        conventions: by feature the convention that the target follows, where it is not the default.
        causes: the failing clauses, grouped by what they have in common.
        errors: failures of the suite itself.
        forms: what is missing or of another form in the target's layers.
        seconds: how long the run took.   date: when the report was made, in UTC.
    """

    target: str
    target_name: str | None = None
    target_version: str | None = None
    versions: Mapping[str, str | None]
    device: str
    device_name: str | None = None
    lane: str | None = None
    spec: str
    profile: str
    seed: int | None = None
    shard: str | None = None
    verdict: str
    groups: Mapping[str, ReportedGroup]
    core: Claim | None = None
    features: Mapping[str, Claim] = field(default_factory=dict)
    conventions: Mapping[str, str] = field(default_factory=dict)
    clauses: tuple[ReportedClause, ...]
    causes: tuple[Cause, ...] = ()
    errors: tuple[SuiteFailure, ...] = ()
    forms: tuple[LayerForm, ...] = ()
    seconds: float | None = None
    date: str | None = None

    @property
    def title(self) -> str:
        """The target's name and, if known, its version."""
        name = self.target_name or self.target
        return f"{name} {self.target_version}" if self.target_version else name

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Report:
        """The report, read from a JSON object. Reports of earlier versions may lack the schema's optional keys.

        Raises:
            KeyError, TypeError, AttributeError: if the object is not a report.
        """
        groups = found["groups"].items()
        parts = {
            "clauses": tuple(ReportedClause.from_json(clause) for clause in found["clauses"]),
            "groups": {
                name: record_json.from_json(ReportedGroup, {**group, "missing": tuple(group.get("missing", ()))})
                for name, group in groups
            },
            "core": found.get("core") and Claim(**found["core"]),
            "features": {name: Claim(**claim) for name, claim in found.get("features", {}).items()},
            "causes": tuple(
                record_json.from_json(Cause, {**cause, "follows": tuple(cause["follows"])})
                for cause in found.get("causes", ())
            ),
            "forms": tuple(record_json.from_json(LayerForm, form) for form in found.get("forms", ())),
            "errors": tuple(record_json.from_json(SuiteFailure, error) for error in found.get("errors", ())),
        }
        return record_json.from_json(cls, {**found, **parts})

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object, in the format of report.json."""
        found: dict[str, Any] = as_json(self)
        found["clauses"] = [clause.to_json() for clause in self.clauses]
        if self.core is None:
            del found["features"]
        if not self.conventions:
            del found["conventions"]
        return _without_none(found, "seconds", "date", "core")


def _without_none(found: dict[str, Any], *optional: str) -> dict[str, Any]:
    """A JSON object without the optional keys whose value is None."""
    return {key: value for key, value in found.items() if value is not None or key not in optional}
