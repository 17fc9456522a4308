"""The plan of a run: the target, the clauses, and the trials that judge them.

Plans are stored as JSON in two files: in `plan.json`, and in the header of a journal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from conformance.report import record_json
from conformance.report.record_json import as_json
from conformance.report.trial_keys import Key
from conformance.target.layer_form import LayerForm

Sources = Mapping[str, tuple[str, int] | None]  # the file and line that define each subject; None if unknown


@dataclass(frozen=True)
class TargetInfo:
    """A target: its specifier (`package.module:attribute`), its own name and version, and the digest of its source."""

    spec: str
    name: str
    version: str | None
    fingerprint: str


@dataclass(frozen=True)
class PlannedGroup:
    """A group of clauses: whether the target claims it, and the required names that the target lacks."""

    claimed: bool
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedTrial:
    """A clause on one subject and dtype.

    Attributes:
        declared: whether the target declares the dtype; otherwise the trial only checks that the target refuses it.
        cases: the number of cases that the trial draws.
    """

    key: Key
    lane: str
    declared: bool
    cases: int

    @classmethod
    def from_json(cls, clause: str, found: Mapping[str, Any]) -> PlannedTrial:
        """The trial of a clause, read from the JSON object that `to_json` returns."""
        key = Key(clause, found["subject"], found["dtype"])
        return cls(key, found["lane"], found["declared"], found["cases"])

    def to_json(self) -> dict[str, Any]:
        """The trial as a JSON object, which is part of its clause's object."""
        key = {"subject": self.key.subject, "dtype": self.key.dtype}
        return {**key, "lane": self.lane, "declared": self.declared, "cases": self.cases}


@dataclass(frozen=True, kw_only=True)
class PlannedClause:
    """A clause and its trials.

    Attributes:
        feature: the feature that the clause belongs to; empty for the core.
        missing: names that the clause needs and the target lacks.
        uninstalled: missing packages that the clause's cases need.
        elsewhere: whether the clause is judged only on other devices than the run's.
    """

    id: str
    group: str
    level: str
    sentence: str
    feature: str = ""
    missing: tuple[str, ...] = ()
    uninstalled: tuple[str, ...] = ()
    elsewhere: bool = False
    trials: tuple[PlannedTrial, ...] = ()

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> PlannedClause:
        """The clause, read from the JSON object that `to_json` returns."""
        lists = {name: tuple(found.get(name, ())) for name in ("missing", "uninstalled")}
        trials = tuple(PlannedTrial.from_json(found["id"], trial) for trial in found["trials"])
        return record_json.from_json(cls, {**found, **lists, "trials": trials})

    def to_json(self) -> dict[str, Any]:
        """The clause as a JSON object."""
        found: dict[str, Any] = as_json(self)
        return {**found, "trials": [trial.to_json() for trial in self.trials]}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run: the target, the device, the groups, the clauses, and their trials.

    Attributes:
        versions: the versions of Python and of the packages that a run depends on, by name.
        interpreting: whether Triton's interpreter runs the target's kernels.
        deviations: the target's reason for each declared deviation, by clause.
        sources: where the target defines its subjects.
        forms: what is missing or of another form in the target's layers.
        conventions: by feature the convention that the target follows, where it is not the default.
    """

    spec: str
    target: TargetInfo
    versions: Mapping[str, str | None]
    device: str
    device_name: str
    interpreting: bool = False
    groups: Mapping[str, PlannedGroup]
    clauses: tuple[PlannedClause, ...]
    deviations: Mapping[str, str]
    sources: Sources = field(default_factory=dict)
    forms: tuple[LayerForm, ...] = ()
    conventions: Mapping[str, str] = field(default_factory=dict)

    @property
    def trials(self) -> Iterator[PlannedTrial]:
        """All trials, in the plan's order."""
        return (trial for clause in self.clauses for trial in clause.trials)

    @property
    def keys(self) -> list[Key]:
        """The keys of all trials, in the plan's order."""
        return [trial.key for trial in self.trials]

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Plan:
        """The plan, read from the JSON object that `to_json` returns.

        Raises:
            KeyError, TypeError: if the object is not a plan.
        """
        places = found.get("sources", {}).items()
        parts = {
            "target": record_json.from_json(TargetInfo, found["target"]),
            "groups": {n: PlannedGroup(g["claimed"], tuple(g["missing"])) for n, g in found["groups"].items()},
            "clauses": tuple(PlannedClause.from_json(clause) for clause in found["clauses"]),
            "forms": tuple(record_json.from_json(LayerForm, form) for form in found.get("forms", ())),
            "sources": {subject: place and (place[0], place[1]) for subject, place in places},
        }
        return record_json.from_json(cls, {**found, **parts})

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        found: dict[str, Any] = as_json(self)
        found["clauses"] = [clause.to_json() for clause in self.clauses]
        return found
