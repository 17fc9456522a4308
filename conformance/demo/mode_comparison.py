"""The report of `loraspec demo private-training`: for each model, a run in each mode, compared with each other."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance.report.record_json import as_json

if TYPE_CHECKING:
    from conformance.demo.estimate import Estimate
    from conformance.demo.training import Run


STEPS, FEW_STEPS = 30, 3  # by default; few where each encrypted step takes seconds
PACKED = ("seal",)  # backends that are fast enough for every model


@dataclass(frozen=True)
class TLS:
    """The files of a server with TLS on 127.0.0.1, PEM, and of the authority by which its client knows it."""

    certificate: str
    private_key: str
    authority: str


@dataclass(frozen=True)
class Wanted:
    """The options of the demo.

    Attributes:
        models, modes, backend: names from `session.MODELS`, `MODES` and `BACKENDS`.
        steps: of each run; None for few where each encrypted step takes seconds.
        implementation: an importable module.   tls: files for the server of mode remote, or None.
    """

    models: tuple[str, ...]
    modes: tuple[str, ...]
    steps: int | None
    backend: str
    seed: int
    implementation: str
    tls: TLS | None = None

    def steps_of(self, model: str) -> int:
        """The steps of each run of a model."""
        if self.steps is not None:
            return self.steps
        encrypted = self.backend in PACKED and not {"execute", "remote"}.isdisjoint(self.modes)
        return FEW_STEPS if model != "mlp" and encrypted else STEPS


@dataclass(frozen=True)
class Settings:
    """The options of the demo, and the encryption parameters of the named backend."""

    wanted: Wanted
    secure: bool
    parameters: Any

    def to_json(self) -> dict[str, Any]:
        """The settings as a JSON object."""
        found: dict[str, Any] = as_json(self.wanted)
        return {**found, "secure": self.secure, "parameters": as_json(self.parameters)}


@dataclass(frozen=True)
class ComparedRun:
    """A run beside the runs of other modes.

    Attributes:
        off_torch, off_disable, off_simulate: the largest difference of a step's loss from the loss in that mode; None
            for the mode itself, and if that mode was not run.
        equals_simulate: whether losses and adapters equal those of simulate; None for a mode without encryption.
    """

    run: Run
    median_seconds: float
    median_cpu_seconds: float
    final_loss: float
    off_torch: float | None
    off_disable: float | None
    off_simulate: float | None
    equals_simulate: bool | None

    def to_json(self) -> dict[str, Any]:
        """The run as a JSON object, with its comparison among its keys."""
        found: dict[str, Any] = as_json(self)
        run: dict[str, Any] = found.pop("run")
        return run | found


@dataclass(frozen=True)
class EstimatedModes:
    """The estimate of a step in encrypted modes that were not run, and the bytes of their evaluation key."""

    modes: tuple[str, ...]
    evaluation_key: int
    estimate: Estimate

    def to_json(self) -> dict[str, Any]:
        """The estimate as a JSON object."""
        found: dict[str, Any] = as_json(self)
        estimate: dict[str, Any] = found.pop("estimate")
        return found | estimate


@dataclass(frozen=True)
class ModelReport:
    """A model: its name, a sentence about it, its sizes, its runs, and an estimate if encryption takes too long."""

    name: str
    about: str
    details: Mapping[str, Any]
    runs: tuple[ComparedRun, ...]
    estimate: EstimatedModes | None

    def to_json(self) -> dict[str, Any]:
        """The model as a JSON object."""
        runs = [run.to_json() for run in self.runs]
        estimate = self.estimate.to_json() if self.estimate else None
        return {"name": self.name, "about": self.about, **self.details, "runs": runs, "estimate": estimate}


@dataclass(frozen=True)
class PrivateTraining:
    """All runs of a demo, and the machine on which they ran."""

    settings: Settings
    models: tuple[ModelReport, ...]
    keygen_seconds: float | None
    versions: Mapping[str, str]
    machine: str

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object, in the format of private-training.json."""
        found: dict[str, Any] = as_json(self)
        return found | {"settings": self.settings.to_json(), "models": [model.to_json() for model in self.models]}


def compared(runs: Sequence[Run]) -> tuple[ComparedRun, ...]:
    """The runs of a model, each with its differences from other modes."""
    by_mode = {run.mode: run for run in runs}
    simulated = by_mode.get("simulate")
    return tuple(
        ComparedRun(
            run,
            median_seconds=statistics.median(run.seconds),
            median_cpu_seconds=statistics.median(run.cpu_seconds),
            final_loss=run.losses[-1],
            off_torch=_furthest(run, by_mode.get("torch")),
            off_disable=_furthest(run, by_mode.get("disable")),
            off_simulate=_furthest(run, simulated),
            equals_simulate=_equal(run, simulated) if run.mode in ("execute", "remote") else None,
        )
        for run in runs
    )


def _furthest(run: Run, other: Run | None) -> float | None:
    if other is None or other is run:
        return None
    return max(abs(a - b) for a, b in zip(run.losses, other.losses, strict=True))


def _equal(run: Run, other: Run | None) -> bool | None:
    return None if other is None else (run.losses, run.adapters) == (other.losses, other.adapters)
