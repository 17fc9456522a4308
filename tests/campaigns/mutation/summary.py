"""The mutation score: killed and surviving mutants by file, time to kill, and the reason for each survivor."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import statistics
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from tests.campaigns.mutation.mutants import ROOT, Mutant, all_mutants
from tests.campaigns.mutation.own_tests import is_test
from tests.support import json_entries, marked_lines

REASONS = Path(__file__).parent / "survivors.json"
KEPT = Path(__file__).parent / "judged.csv"  # verdicts of earlier runs, by the digest of the mutant's name
COMMAND = "python -m tests.campaigns.mutation table --readme"
STAGES = ("first", "quick", "tests")  # what judges a mutant, in turn; the cheap ones kill most
# stage: the last one that judged, if the run did not ask all of them
COLUMNS = ("digest", "status", "clause", "seconds", "stage")


def digest(mutant: str) -> str:
    """A short name of a mutant's name."""
    return hashlib.sha256(mutant.encode()).hexdigest()[:10]


def kept(mutants: list[Mutant]) -> list[dict[str, Any]]:
    """Return the committed entries of mutants that still exist."""
    by_digest = {digest(m.id): m for m in mutants}
    with KEPT.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["digest"] in by_digest]
    named = [(by_digest[row["digest"]], row) for row in rows]
    return [
        {"mutant": m.id, "file": m.file, "operator": m.operator, **row, "seconds": float(row["seconds"])}
        for m, row in named
    ]


def keep(entries: list[dict[str, Any]]) -> None:
    """Write the entries to the committed file, for later runs to leave out."""
    rows = sorted(
        (digest(e["mutant"]), e["status"], e["clause"], round(e["seconds"], 1), e.get("stage", "")) for e in entries
    )
    with KEPT.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


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


def scored(entries: list[dict[str, Any]], places: dict[str, float]) -> list[dict[str, Any]]:
    """Return the entries of mutants that all stages judged at once, and in their order those before an undecided one.

    In a run that ends before the last stage, what is decided is what dies first: to count it alone raises the score.
    """
    first = min((places[e["mutant"]] for e in entries if e["status"] == "undecided"), default=1.0)
    return [e for e in entries if not e.get("stage") or places[e["mutant"]] < first]


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
        "groups": dict(Counter(_judge(e["clause"]) for e in entries if e["status"] == "killed").most_common()),
        "seconds_to_kill": _quantiles(times),
        "cpu_seconds": round(sum(e["seconds"] for e in entries)),
        "gaps": [e["mutant"] for e in entries if e["status"] == "survived" and not reason(e["mutant"])],
        "equivalent": dict(Counter(filter(None, (reason(e["mutant"]) for e in entries if e["status"] == "survived")))),
    }


def tally(entries: list[dict[str, Any]]) -> dict[str, int]:
    """Return counts of all entries, for a bound: how many were detected, change nothing, or are undecided."""
    found = Counter("equivalent" if reason(e["mutant"]) else e["status"] for e in entries if e["status"] != "killed")
    return {"mutants": len(entries), "killed": len(entries) - sum(found.values()), **found}


def _judge(clause: str) -> str:
    """Who killed a mutant: a group of clauses by the prefix of its ids, the import, or the project's own tests."""
    return "own tests" if is_test(clause) else clause.split("-", maxsplit=1)[0]


def _score(counts: Counter[str]) -> float:
    judged = counts["killed"] + counts["gap"]
    return round(counts["killed"] / judged, 4) if judged else 1.0


def _quantiles(times: list[float]) -> dict[str, float]:
    if len(times) < 2:
        return {}
    cuts = statistics.quantiles(times, n=20)
    return {"p25": cuts[4], "median": cuts[9], "p75": cuts[14], "p95": cuts[18], "max": times[-1]}


def line(found: dict[str, Any]) -> str:
    """The table in one sentence, for a page of the project."""
    equivalent, gaps = sum(found["equivalent"].values()), len(found["gaps"])
    judged, own = found["mutants"] - equivalent, found["groups"].get("own tests", 0)
    table = f"[table]({Path(__file__).parent.relative_to(ROOT)}/results.json)"
    return (
        f"Of {judged:,} random edits of `reference/` and `optimized/` that change what they do, the clauses\n"
        f"detect {(judged - gaps - own) / judged:.1%}, and with the project's own tests {found['score']:.1%} "
        f"({found['date']}, {table});\n{equivalent} more change nothing that is promised."
    )


def show(journals: list[Path], out: Path | None, page: Path | None) -> int:
    """Print the table of the journals and the committed entries; return 1 if a survivor has no reason.

    Args:
        out: the table is written to it, and the entries to the committed file.   page: gets the sentence.
    """
    mutants = [m for m in all_mutants() if m.valid]
    places = {m.id: m.place for m in mutants}
    known = {e["mutant"]: e for e in [*kept(mutants), *read(journals)]}
    entries = of_today(list(known.values()), set(places))
    counted = scored(entries, places)
    found = {"date": date.today().isoformat(), "of": len(places), **scores(counted), "every": tally(entries)}
    print(f"{'file':<36} killed  equivalent  gaps  score")
    for name, counts in found["files"].items():
        row = (counts.get(kind, 0) for kind in ("killed", "equivalent", "gap"))
        print("{:<36} {:>6}  {:>10}  {:>4}  {:>6.1%}".format(name, *row, counts["score"]))
    print(f"{'all':<36} {found['mutants']} of {found['of']} mutants, score {found['score']:.1%}")
    print(f"killed by {found['groups']}; seconds to kill {found['seconds_to_kill']}")
    print(f"judged at all, which is not scored: {found['every']}")
    for mutant in found["gaps"]:
        print(f"gap: {mutant}")
    if out is not None:
        json_entries.write(out, found)
        keep(entries)
    if page is not None:
        marked_lines.write(page, "mutation", COMMAND, line(found))
    return 1 if found["gaps"] else 0
