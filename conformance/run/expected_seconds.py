"""What a trial is expected to take: seconds a case, as they were measured on `optimized`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from conformance.report.trial_keys import Key

MEASURED = Path(__file__).with_name("seconds.json")  # by clause, then by lane; `loraspec cost --record` writes it
UNKNOWN = 1.0  # seconds a case of a clause that was not measured


def record(report: dict[str, Any], path: Path = MEASURED) -> None:
    """Write the table anew from the report of a run of every clause on `optimized`, a line a clause.

    A clause that the report did not judge keeps its line. Seconds have one digit, so that noise changes few lines.
    """
    found = dict(_read(path))
    for clause in report["clauses"]:
        by_lane: dict[str, float] = {}
        for result in clause["results"]:
            cases = result["examples"] + result["inconclusive"]
            if cases:
                one = result["seconds"] / cases
                by_lane[result["lane"]] = max(float(f"{one:.0e}"), by_lane.get(result["lane"], 0.0))
        if by_lane:
            found[clause["id"]] = by_lane
    lines = [f"{json.dumps(name)}: {json.dumps(found[name], sort_keys=True)}" for name in sorted(found)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


@cache
def _measured() -> dict[str, dict[str, float]]:
    return _read(MEASURED)


def _read(path: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def of(plan: dict[str, Any]) -> Callable[[Key], float]:
    """The seconds of each planned trial, by clause, subject and dtype."""
    seconds: dict[Key, float] = {}
    for clause in plan["clauses"]:
        by_lane = _measured().get(clause["id"], {})
        for trial in clause["trials"]:
            one = by_lane.get(trial["lane"], max(by_lane.values(), default=UNKNOWN))
            seconds[clause["id"], trial["subject"], trial["dtype"]] = one * trial["cases"]
    return seconds.__getitem__
