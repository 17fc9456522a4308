"""The plan of a run: the target, the clauses, and the trials that judge them.

It is JSON only in files: in `plan.json`, which the process with the target leaves, and in the header of a journal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from conformance.report import record_json
from conformance.report.record_json import as_json
from conformance.report.trial_keys import Key

Sources = Mapping[str, tuple[str, int] | None]  # by subject the file and line that define it; None where unknown


@dataclass(frozen=True)
class TargetInfo:
    """A target: the words that name it (`package.module:attribute`), its own name and version, its source's digest."""

    spec: str
    name: str
    version: str | None
    fingerprint: str


@dataclass(frozen=True)
class PlannedGroup:
    """A group of clauses: whether the target claims it, and the names that it lacks for that."""

    claimed: bool
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedTrial:
    """A clause on one subject and dtype.

    Attributes:
        declared: whether the target declares the dtype; otherwise the trial only sees whether the target refuses it.
        cases: how many cases the trial draws.
    """

    key: Key
    lane: str
    declared: bool
    cases: int

    @classmethod
    def from_json(cls, clause: str, found: Mapping[str, Any]) -> PlannedTrial:
        """The trial of a clause, from the JSON object that `to_json` gives."""
        key = Key(clause, found["subject"], found["dtype"])
        return cls(key, found["lane"], found["declared"], found["cases"])

    def to_json(self) -> dict[str, Any]:
        """The trial as a JSON object, which stands in that of its clause."""
        key = {"subject": self.key.subject, "dtype": self.key.dtype}
        return {**key, "lane": self.lane, "declared": self.declared, "cases": self.cases}


@dataclass(frozen=True, kw_only=True)
class PlannedClause:
    """A clause and its trials.

    Attributes:
        missing: names that the clause needs and the target lacks.
        uninstalled: packages that the clause's cases need and that are not installed.
        elsewhere: whether the clause is judged on other devices only.
    """

    id: str
    group: str
    level: str
    sentence: str
    missing: tuple[str, ...] = ()
    uninstalled: tuple[str, ...] = ()
    elsewhere: bool = False
    trials: tuple[PlannedTrial, ...] = ()

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> PlannedClause:
        """The clause of the JSON object that `to_json` gives."""
        lists = {name: tuple(found.get(name, ())) for name in ("missing", "uninstalled")}
        trials = tuple(PlannedTrial.from_json(found["id"], trial) for trial in found["trials"])
        return record_json.from_json(cls, {**found, **lists, "trials": trials})

    def to_json(self) -> dict[str, Any]:
        """The clause as a JSON object."""
        found: dict[str, Any] = as_json(self)
        return {**found, "trials": [trial.to_json() for trial in self.trials]}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will judge, and on what.

    Attributes:
        versions: by name the versions of Python and of the packages that a run depends on.
        interpreting: whether Triton's interpreter runs the target's kernels.
        deviations: by clause the reason for which the target does not meet it.
        sources: where the target defines its subjects.
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
        """The plan of the JSON object that `to_json` gives.

        Raises:
            KeyError, TypeError: if it is no such object.
        """
        places = found.get("sources", {}).items()
        parts = {
            "target": record_json.from_json(TargetInfo, found["target"]),
            "groups": {n: PlannedGroup(g["claimed"], tuple(g["missing"])) for n, g in found["groups"].items()},
            "clauses": tuple(PlannedClause.from_json(clause) for clause in found["clauses"]),
            "sources": {subject: place and (place[0], place[1]) for subject, place in places},
        }
        return record_json.from_json(cls, {**found, **parts})

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        found: dict[str, Any] = as_json(self)
        found["clauses"] = [clause.to_json() for clause in self.clauses]
        return found
