"""The report of a benchmark, and bench.json: the machine, the targets and whether they are ranked, and the cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from conformance.bench.admission import Admission
from conformance.bench.ceilings import Ceilings
from conformance.bench.measured_case import MEASURED, UNSUPPORTED, MeasuredCase
from conformance.bench.measurement import Pace
from conformance.report.record_json import as_json


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """A benchmark.

    Attributes:
        threads: the number of torch's threads.   load_at_start: the load average before the first measurement.
        versions: the versions of Python and of the packages that the benchmark depends on, by name.
    """

    device: str
    device_name: str
    threads: int
    processors: int | None
    load_at_start: float
    system: str
    versions: Mapping[str, str | None]
    pace: Pace
    ceilings: Ceilings
    targets: tuple[Admission, ...]
    cases: tuple[MeasuredCase, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object, in the format of bench.json."""
        found: dict[str, Any] = as_json(self)
        found["targets"] = [
            as_json(target) | {"verdict": target.verdict, "ranked": target.ranked} for target in self.targets
        ]
        found["cases"] = [case.to_json() for case in self.cases]
        return found


def exit_code(targets: Iterable[Admission], cases: Iterable[MeasuredCase]) -> int:
    """The exit code: 0 if every target is ranked and every layer ran, else 1."""
    ran = all(row.status in (MEASURED, UNSUPPORTED) for case in cases for row in case.layers)
    return 0 if ran and all(target.ranked for target in targets) else 1
