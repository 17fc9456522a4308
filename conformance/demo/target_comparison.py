"""The report of `loraspec demo train`: the runs of several targets, each compared with the first target's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance.report.record_json import as_json

if TYPE_CHECKING:
    from conformance.demo.learners import Run

# Relative to the first loss. Two right targets differ by rounding, 6e-8 of a loss, and training must not amplify that,
# or the band says nothing. A run of `reference` whose first weights are each one rounding off shows whether it does. At
# the Llama's rate, 0.002, it differs by at most 5e-6 in fifty steps with the seeds 0 to 9, and `optimized` by 5e-7. At
# 0.01 it differs by 3e-3 with seed 1 and by 2e-2 with seed 2, and `optimized` by less: no target is at fault there.
BAND = 1e-4


@dataclass(frozen=True)
class Wanted:
    """The options of the demo.

    Attributes:
        model: a name from `train.MODELS`.
        targets: `peft` or importable modules; the others are compared with the first.
        base: the format in which the adapted layers are packed, empty for float layers. All targets are then compared
            with `reference` on the float layers that the packed ones stand for.
    """

    model: str
    steps: int
    targets: tuple[str, ...]
    seed: int
    base: str = ""


@dataclass(frozen=True)
class TargetRun:
    """The run of a target, compared with the first target's. A non-finite number is None, since JSON lacks it.

    Attributes:
        times_first: the median ratio of its times to the first target's.
        off_first: the largest difference of a loss from the first target's; None for the first target itself.
        off_norm: the largest relative difference of a gradient norm from the first target's; None in the same case.
        in_band: whether every loss is close enough to the first target's.
    """

    target: str
    losses: tuple[float | None, ...]
    norms: tuple[float | None, ...]
    seconds: tuple[float, ...]
    trained: int
    median_seconds: float
    times_first: float
    final_loss: float | None
    off_first: float | None
    off_norm: float | None
    in_band: bool


@dataclass(frozen=True)
class TunedModel:
    """A model: its name, a sentence about it, and its sizes."""

    name: str
    about: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class TargetComparison:
    """All runs of a demo, and the machine on which they ran.

    Attributes:
        band: how far a loss may be from the first target's, relative to the first loss.
    """

    wanted: Wanted
    model: TunedModel
    runs: tuple[TargetRun, ...]
    versions: Mapping[str, str]
    machine: str
    band: float = BAND

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object, in the format of train.json."""
        return {
            "settings": {**as_json(self.wanted), "band": self.band},
            "model": {"name": self.model.name, "about": self.model.about, **self.model.details},
            "runs": as_json(self.runs),
            "versions": as_json(self.versions),
            "machine": self.machine,
        }


def compared(runs: Sequence[Run], band: float = BAND) -> tuple[TargetRun, ...]:
    """The runs of all targets, each with its differences from the first."""
    return tuple(_compared(run, runs[0], band) for run in runs)


def _compared(run: Run, first: Run, band: float) -> TargetRun:
    off = _furthest(abs(a - b) for a, b in zip(run.losses, first.losses, strict=True))
    off_norm = _furthest(abs(a - b) / b for a, b in zip(run.norms, first.norms, strict=True))
    return TargetRun(
        target=run.target,
        losses=tuple(map(_finite, run.losses)),
        norms=tuple(map(_finite, run.norms)),
        seconds=tuple(run.seconds),
        trained=run.trained,
        median_seconds=statistics.median(run.seconds),
        times_first=statistics.median(a / b for a, b in zip(run.seconds, first.seconds, strict=True)),
        final_loss=_finite(run.losses[-1]),
        off_first=None if run is first else off,
        off_norm=None if run is first else off_norm,
        in_band=off is not None and off <= band * first.losses[0],
    )


def _finite(value: float) -> float | None:
    """The number; None if it is not finite, since JSON has only finite numbers."""
    return value if math.isfinite(value) else None


def _furthest(gaps: Iterable[float]) -> float | None:
    """The largest gap; None if a gap is not finite. `max` alone would not detect a NaN."""
    found = list(gaps)
    return max(found) if all(map(math.isfinite, found)) else None
