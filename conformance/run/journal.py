"""The journal of a run: its selection, its plan, and the results in order of arrival, as one JSON object per line.

An interrupted run is resumed from its journal. The journals of all shards are merged into one report.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.errors import UsageError
from conformance.judgement.result import Result
from conformance.report.files import replace
from conformance.report.outcome import Outcome
from conformance.report.plan import Plan
from conformance.report.report import SuiteFailure
from conformance.report.trial_keys import Key
from conformance.run.selection import Selection
from conformance.run.shards import part

NAME = "events.jsonl"


@dataclass
class Recorded:
    """The content of a journal.

    Attributes:
        plan: the whole plan, including the trials of other shards.
        outcome: the outcome so far.   devices: names of the devices that the run used.
        seconds: time spent.   length: bytes of complete lines; a later line is only partly written.
    """

    selection: Selection
    plan: Plan
    outcome: Outcome = field(default_factory=Outcome)
    devices: list[str] = field(default_factory=list)
    seconds: float = 0.0
    length: int = 0

    @property
    def left(self) -> list[Key]:
        """The trials of this run's shard that have no result yet."""
        return [key for key in part(self.plan, self.selection.shard).keys if key not in self.outcome.results]


class Journal:
    """The journal that a run is writing."""

    def __init__(self, folder: Path, recorded: Recorded) -> None:
        self.path, self.recorded = folder / NAME, recorded
        self.started = time.perf_counter()
        self._written = set(recorded.outcome.results)
        self._errors = len(recorded.outcome.errors)

    @classmethod
    def begin(cls, folder: Path, selection: Selection, plan: Plan) -> Journal:
        """Start a journal. It replaces the journal of an earlier run."""
        header = {"selection": dataclasses.asdict(selection), "plan": plan.to_json()}
        replace(folder / NAME, json.dumps({"run": header}) + "\n")
        return cls(folder, Recorded(selection, plan, devices=[plan.device_name]))

    @classmethod
    def resume(cls, folder: Path, selection: Selection, plan: Plan) -> Journal:
        """Continue a journal. Its results are kept; failures of the suite are dropped if trials are left to run.

        Raises:
            UsageError: if the journal belongs to another run, naming the differences.
        """
        recorded = read(folder)
        if recorded is None:
            return cls.begin(folder, selection, plan)
        differing = differences(recorded, Recorded(selection, plan), "in the journal", "now")
        if differing:
            raise UsageError(listed(f"cannot resume the run in {str(folder)!r}, which differs:", differing))
        os.truncate(folder / NAME, recorded.length)
        journal = cls(folder, recorded)
        if recorded.left:
            recorded.outcome.errors.clear()
            recorded.devices = list(dict.fromkeys([*recorded.devices, plan.device_name]))
            journal._errors = 0
            journal._append({"resumed": plan.device_name})
        return journal

    @property
    def seconds(self) -> float:
        """Seconds spent so far, including the time before the run was resumed."""
        return round(self.recorded.seconds + time.perf_counter() - self.started, 1)

    @property
    def devices(self) -> str:
        """Names of the devices that the run used."""
        return joined(self.recorded.devices)

    def record(self, outcome: Outcome) -> None:
        """Append the results and failures that are not in the journal yet."""
        new = [key for key in outcome.results if key not in self._written]
        errors = outcome.errors[self._errors :]
        events: list[dict[str, Any]] = [
            {"result": dataclasses.asdict(outcome.results[key]), "script": outcome.scripts.get(key)} for key in new
        ]
        events += [{"error": error.traceback, "where": error.where} for error in errors]
        if events:
            events[-1]["seconds"] = self.seconds
            self._append(*events)
        self._written.update(new)
        self._errors += len(errors)

    def _append(self, *events: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)
            file.flush()
            os.fsync(file.fileno())  # the machine may be shut down at any time


def read(folder: Path) -> Recorded | None:
    """Read the journal in a report folder. Returns None if the file, or its first line, is missing."""
    events = _events(folder / NAME)
    length, first = next(events, (0, {}))
    if "run" not in first:
        return None
    header = first["run"]
    try:
        selection, plan = Selection.from_dict(header["selection"]), Plan.from_json(header["plan"])
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise UsageError(f"{str(folder / NAME)!r} is of another version of loraspec: {error}") from error
    recorded = Recorded(selection, plan, devices=[plan.device_name], length=length)
    for recorded.length, event in events:
        match event:
            case {"result": dict(result), "script": script}:
                recorded.outcome.add(Result(**result), script if isinstance(script, str) else None)
            case {"error": str(text), "where": str(where)}:
                recorded.outcome.errors.append(SuiteFailure(where, text))
            case {"resumed": str(device)}:
                recorded.outcome.errors.clear()
                recorded.devices = list(dict.fromkeys([*recorded.devices, device]))
        recorded.seconds = event.get("seconds", recorded.seconds)
    return recorded


def _events(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each event with the offset of its end, up to the first line that is only partly written."""
    end = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:
            return
        if not line.endswith(b"\n") or not isinstance(event, dict):
            return
        end += len(line)
        yield end, event


def differences(one: Recorded, other: Recorded, here: str, there: str) -> list[str]:
    """The differences between the runs of two journals, as lines; empty if both belong to one run."""
    a, b = _identity(one), _identity(other)
    found = [
        f"{name}: {a.get(name)} {here}, {b.get(name)} {there}" for name in {**a, **b} if a.get(name) != b.get(name)
    ]
    if found:
        return found
    planned, others = _trials(one), _trials(other)
    only = [f"{' '.join(trial)} {here}" for trial in planned if trial not in others]
    only += [f"{' '.join(trial)} {there}" for trial in others if trial not in planned]
    return [f"{len(only)} trials are planned on one side only: {only[0]}"] if only else []


def _identity(recorded: Recorded) -> dict[str, Any]:
    selection, plan = recorded.selection, recorded.plan
    asked = {name: ", ".join(value) or ("none" if name == "exclude" else "all") for name, value in selection.lists()}
    return {
        "target": plan.target.spec,
        "name of the target": plan.target.name,
        "version of the target": plan.target.version,
        "source of the target": plan.target.fingerprint,
        **{f"version of {name}": version for name, version in plan.versions.items()},
        "spec": plan.spec,
        "profile": selection.profile,
        "seed": selection.seed,
        "device": selection.device,
        # shards may run on different processors, but a GPU is itself under test
        "name of the device": plan.device_name if selection.device != "cpu" else None,
        "lane": selection.lane,
        "shard": selection.shard,
        "deviations": ", ".join(plan.deviations) or "none",
        **asked,
    }


def _trials(recorded: Recorded) -> dict[tuple[str, ...], None]:
    return {(*trial.key, trial.lane): None for trial in recorded.plan.trials}


def joined(names: list[str]) -> str:
    """The distinct names, joined by "and"."""
    return " and ".join(dict.fromkeys(names))


def listed(title: str, lines: list[str]) -> str:
    """A title with indented lines under it."""
    return "\n".join([title, *(f"  {line}" for line in lines)])
