"""The expected seconds of a trial, from the seconds per case that were measured on `optimized`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

from conformance.report.plan import Plan
from conformance.report.report import Report
from conformance.report.trial_keys import Key

MEASURED = Path(__file__).with_name("seconds.json")  # by clause, then by lane; `loraspec cost --record` writes it
UNKNOWN = 1.0  # seconds per case of a clause without a measurement


def record(report: Report, path: Path = MEASURED) -> None:
    """Rewrite the table from the report of a run on `optimized`, with one line for each clause.

    A clause that the report did not judge keeps its line. Seconds have one digit, so that noise changes few lines.
    """
    found = dict(_read(path))
    for clause in report.clauses:
        by_lane: dict[str, float] = {}
        for result in clause.results:
            if result.cases and result.seconds is not None:
                one = result.seconds / result.cases
                by_lane[result.lane] = max(float(f"{one:.0e}"), by_lane.get(result.lane, 0.0))
        if by_lane:
            found[clause.id] = by_lane
    lines = [f"{json.dumps(name)}: {json.dumps(found[name], sort_keys=True)}" for name in sorted(found)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


@cache
def _measured() -> dict[str, dict[str, float]]:
    return _read(MEASURED)


def _read(path: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def of(plan: Plan) -> Callable[[Key], float]:
    """A function that returns the expected seconds of a planned trial."""
    seconds: dict[Key, float] = {}
    for trial in plan.trials:
        seconds[trial.key] = seconds_of_case(trial.key.clause, trial.lane) * trial.cases
    return seconds.__getitem__


def seconds_of_case(clause: str, lane: str, unknown: float = UNKNOWN) -> float:
    """The seconds of one case of a clause in a lane, or in another if this one was not measured."""
    by_lane = _measured().get(clause, {})
    return by_lane.get(lane, max(by_lane.values(), default=unknown))
