"""Sums of journals: cases and alarms by dtype, headroom and undecided share by clause."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from conformance.judgement.result import PASS
from conformance.specification.clause import MUST, load_all
from tests.campaigns.alarms.campaign import RIGHT

MOST_UNDECIDED = 0.05


def read(journals: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the entry of each complete line; an interrupted run may have left half a line."""
    lines = [line for path in journals for line in path.read_text(encoding="utf-8").splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def summary(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums over all entries.

    An alarm is a MUST clause that fails one of our own right implementations. Failures of SHOULD clauses and of peer
    libraries are findings. The `headroom` of a clause is `1 / worst`: the factor by which its budget could shrink
    before a right implementation fails.
    """
    must = {clause.id for clause in load_all().values() if clause.level == MUST}
    own = {*RIGHT, "reference", "optimized"}
    cases: Counter[str] = Counter()
    alarms: Counter[str] = Counter()
    for entry in entries:
        cases[entry["dtype"]] += entry["cases"]
        alarms[entry["dtype"]] += entry["status"] != PASS and entry["clause"] in must and entry["name"] in own
    raised = [entry for entry in entries if entry["status"] != PASS]
    return {
        "cases": sum(cases.values()),
        "alarms": sum(alarms.values()),
        "by_dtype": {d: {"cases": cases[d], "alarms": alarms[d]} for d in sorted(cases)},
        "implementations": dict(sorted(Counter(_summed(entries, "name")).items())),
        "clauses": {clause: _clause(entries, clause) for clause in sorted({e["clause"] for e in entries})},
        "findings": [{k: e[k] for k in ("name", "clause", "subject", "dtype", "message")} for e in raised],
    }


def _summed(entries: list[dict[str, Any]], key: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for entry in entries:
        counts[entry[key]] += entry["cases"]
    return counts


def _clause(entries: list[dict[str, Any]], clause: str) -> dict[str, Any]:
    own = [e for e in entries if e["clause"] == clause]
    decided, undecided = sum(e["cases"] for e in own), sum(e["inconclusive"] for e in own)
    numeric = [e for e in own if e["worst"] and e["status"] == PASS]
    worst = max(numeric, key=lambda e: e["worst"], default=None)
    return {
        "cases": decided,
        "undecided": round(undecided / max(1, decided + undecided), 4),
        "worst": round(worst["worst"], 3) if worst else None,
        "headroom": round(1 / worst["worst"], 2) if worst else None,
        "by": f"{worst['name']}, {worst['dtype']}" if worst else None,
    }


def show(found: dict[str, Any]) -> int:
    """Print the tables; return 1 if a right implementation failed or a clause leaves too many cases undecided."""
    print(f"{'clause':<24} {'cases':>8}  undecided  worst  headroom  by")
    for clause, row in found["clauses"].items():
        numbers = f"{row['worst']:>5}  {row['headroom']:>8}  {row['by']}" if row["worst"] else ""
        print(f"{clause:<24} {row['cases']:>8}  {row['undecided']:>9.1%}  {numbers}")
    for finding in found["findings"]:
        print("{clause} {subject} {dtype} on {name}: {message}".format(**finding))
    for dtype, row in found["by_dtype"].items():
        print(f"{dtype:<9} {row['cases']:>9} cases, {row['alarms']} alarms")
    vague = [clause for clause, row in found["clauses"].items() if row["undecided"] > MOST_UNDECIDED]
    print(f"{found['cases']} cases, {found['alarms']} alarms; undecided above {MOST_UNDECIDED:.0%}: {vague or 'none'}")
    return 1 if found["alarms"] or vague else 0
