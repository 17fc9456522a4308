"""The mutation score: killed and surviving mutants by file, time to kill, and the reason for each survivor."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from tests.campaigns.mutation.mutants import all_mutants
from tests.support import json_entries

REASONS = Path(__file__).parent / "survivors.json"


def read(journals: list[Path]) -> list[dict[str, Any]]:
    """Return the last entry of each mutant in the journals."""
    lines = [line for path in journals for line in path.read_text(encoding="utf-8").splitlines()]
    return list({entry["mutant"]: entry for entry in map(json.loads, lines)}.values())


def reasons() -> dict[str, str]:
    """Return why survivors are equivalent to the original: patterns of mutant names with their reasons."""
    found: dict[str, str] = json.loads(REASONS.read_text(encoding="utf-8"))
    return found


def reason(mutant: str) -> str | None:
    """Return the reason recorded for a survivor, or None for a gap in the suite."""
    return next((why for pattern, why in reasons().items() if matching(pattern, [mutant])), None)


def matching(pattern: str, mutants: list[str]) -> list[str]:
    """Return the mutants whose names match a pattern, in which only `*` is special and matches anything."""
    expression = re.compile(".*".join(map(re.escape, pattern.split("*"))) if "*" in pattern else re.escape(pattern))
    return [mutant for mutant in mutants if expression.fullmatch(mutant)]


def of_today(entries: list[dict[str, Any]], names: set[str]) -> list[dict[str, Any]]:
    """Return the entries of mutants that still exist; the files of the others have been edited since."""
    return [entry for entry in entries if entry["mutant"] in names]


def scores(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return counts by file, seconds to kill, the groups that killed, gaps by name and the others by their reasons."""
    files: dict[str, Counter[str]] = {}
    for entry in entries:
        counts = files.setdefault(entry["file"], Counter())
        status = entry["status"]
        if status == "survived":
            status = "equivalent" if reason(entry["mutant"]) else "gap"
        counts["killed" if status in ("crashed", "hung") else status] += 1
    times = sorted(e["seconds"] for e in entries if e["status"] == "killed")
    total: Counter[str] = sum(files.values(), Counter())
    return {
        "mutants": len(entries),
        "score": _score(total),
        "files": {name: {**counts, "score": _score(counts)} for name, counts in sorted(files.items())},
        "groups": dict(Counter(e["clause"].split("-")[0] for e in entries if e["status"] == "killed").most_common()),
        "seconds_to_kill": _quantiles(times),
        "cpu_seconds": round(sum(e["seconds"] for e in entries)),
        "gaps": [e["mutant"] for e in entries if e["status"] == "survived" and not reason(e["mutant"])],
        "equivalent": dict(Counter(filter(None, (reason(e["mutant"]) for e in entries if e["status"] == "survived")))),
    }


def _score(counts: Counter[str]) -> float:
    judged = counts["killed"] + counts["gap"]
    return round(counts["killed"] / judged, 4) if judged else 1.0


def _quantiles(times: list[float]) -> dict[str, float]:
    if len(times) < 2:
        return {}
    cuts = statistics.quantiles(times, n=20)
    return {"p25": cuts[4], "median": cuts[9], "p75": cuts[14], "p95": cuts[18], "max": times[-1]}


def show(journals: list[Path], out: Path | None) -> int:
    """Print the table; return 1 if a survivor has no reason."""
    everything = [m.id for m in all_mutants() if m.valid]
    entries = of_today(read(journals), set(everything))
    found = {"date": date.today().isoformat(), "of": len(everything), **scores(entries)}
    print(f"{'file':<36} killed  equivalent  gaps  score")
    for name, counts in found["files"].items():
        row = (counts.get(kind, 0) for kind in ("killed", "equivalent", "gap"))
        print("{:<36} {:>6}  {:>10}  {:>4}  {:>6.1%}".format(name, *row, counts["score"]))
    print(f"{'all':<36} {found['mutants']} of {found['of']} mutants, score {found['score']:.1%}")
    print(f"killed by {found['groups']}; seconds to kill {found['seconds_to_kill']}")
    for mutant in found["gaps"]:
        print(f"gap: {mutant}")
    if out is not None:
        json_entries.write(out, found)
    return 1 if found["gaps"] else 0
