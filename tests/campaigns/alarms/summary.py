"""Sums of journals: cases and alarms by group and by implementation, and the room that each clause leaves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from conformance.specification.clause import load_all

MOST_UNDECIDED = 0.05
ENOUGH = 60  # cases of a clause, decided or not: a share of fewer says little
SHOWN = 12  # clauses with the least room that are printed
COMMAND = "python -m tests.campaigns.alarms table --readme"
WHO = ("implementation", "subject", "dtype", "case")


def add(journal: Path, line: dict[str, Any]) -> None:
    """Append one line to a journal, after what an interrupted run may have left of a line."""
    text = json.dumps(line, ensure_ascii=False)
    cut = journal.exists() and journal.read_bytes()[-1:] not in (b"\n", b"")
    with journal.open("a", encoding="utf-8") as file:
        file.write("\n" * cut + text + "\n")


def read(journals: Iterable[Path]) -> list[dict[str, Any]]:
    """Return what each complete line of journals holds; an interrupted run may have left part of a line."""
    found = []
    for path in filter(Path.exists, journals):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def entries(journals: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the entries of journals: one for each clause and round."""
    return [line for line in read(journals) if "again" not in line]


def alarms(lines: Iterable[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return clause and record of each case that failed, and did not pass when it was judged again."""
    lines = list(lines)
    last = {_key(line["again"]["clause"], line["again"]): line["status"] for line in lines if "again" in line}
    found = [(line["clause"], alarm) for line in lines if "again" not in line for alarm in line["alarms"]]
    return [(clause, alarm) for clause, alarm in found if last.get(_key(clause, alarm), "alarm") == "alarm"]


def _key(clause: str, alarm: dict[str, Any]) -> tuple[str, ...]:
    return clause, *(alarm[name] for name in WHO)


def alarm_line(clause: str, alarm: dict[str, Any]) -> str:
    """Return one alarm as it is printed."""
    return f"alarm: {clause} {alarm['subject']} on {alarm['implementation']}: {alarm['case']}\n{alarm['message']}"


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums over all lines of journals.

    The `worst` of a clause is the largest error ÷ budget of a right implementation: at 1 it would be an alarm.
    """
    found = [line for line in lines if "again" not in line]
    left = alarms(lines)
    every = load_all()
    return {
        "date": max((line["date"] for line in found), default=""),
        "cases": sum(sum(line["decided"].values()) for line in found),
        "alarms": len(left),
        "judged again": sum(len(line["alarms"]) for line in found) - len(left),
        "seconds": round(sum(line["seconds"] for line in found)),
        "groups": _groups(found, left),
        "dtypes": dict(sorted(_sum(line["decided"] for line in found).items())),
        "implementations": dict(sorted(_sum(line["by"] for line in found).items())),
        "clauses": {clause: _clause(found, clause) for clause in every if any(e["clause"] == clause for e in found)},
        "raised": [{"clause": clause, **alarm} for clause, alarm in left],
    }


def _sum(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total


def _groups(found: list[dict[str, Any]], left: list[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, int]]:
    every = load_all()
    groups: dict[str, dict[str, int]] = {}
    for line in found:
        row = groups.setdefault(every[line["clause"]].group, {"clauses": 0, "cases": 0, "undecided": 0, "alarms": 0})
        row["cases"] += sum(line["decided"].values())
        row["undecided"] += sum(line["undecided"].values())
    for name, row in groups.items():
        judged = {line["clause"] for line in found if line["decided"] and every[line["clause"]].group == name}
        row["clauses"] = len(judged)
        row["alarms"] = sum(every[clause].group == name for clause, _ in left)
    return groups


def _clause(found: list[dict[str, Any]], clause: str) -> dict[str, Any]:
    own = [line for line in found if line["clause"] == clause]
    decided = sum(sum(line["decided"].values()) for line in own)
    undecided = sum(sum(line["undecided"].values()) for line in own)
    worst = max((line["worst"] for line in own if line["worst"]), default=None)
    row: dict[str, Any] = {"cases": decided}
    if undecided:
        row["undecided"] = round(undecided / (decided + undecided), 4)
    return row if worst is None else {**row, "worst": round(worst[0], 3), "by": worst[1]}


def vague_clauses(found: dict[str, Any]) -> list[str]:
    """Return the clauses that leave too many of their cases undecided."""
    rows = found["clauses"].items()
    many = [(clause, row) for clause, row in rows if row.get("undecided", 0) > MOST_UNDECIDED]
    return [clause for clause, row in many if row["cases"] >= ENOUGH * (1 - row["undecided"])]


def line(found: dict[str, Any]) -> str:
    """Return the sums in one sentence, for a page."""
    implementations = sum(count > 0 for count in found["implementations"].values())
    again = found["judged again"]
    mended = f";\n{again} that failed at first were judged again after a clause or the list was mended" if again else ""
    said = "no false alarm" if not found["alarms"] else f"{found['alarms']} false alarms"
    return (
        f"On {implementations} right implementations, peers among them, {found['cases']:,} cases give {said} "
        f"({found['date']}, [table](tests/campaigns/alarms/results.json)){mended}."
    )


def show(found: dict[str, Any]) -> int:
    """Print the tables; return 1 if a right implementation failed or a clause leaves too many cases undecided."""
    print(f"{'group':<12} {'clauses':>7} {'cases':>9}  undecided  alarms")
    for name, row in found["groups"].items():
        share = row["undecided"] / max(1, row["cases"] + row["undecided"])
        print(f"{name:<12} {row['clauses']:>7} {row['cases']:>9,}  {share:>9.1%}  {row['alarms']:>6}")
    worst = sorted((row["worst"], clause, row["by"]) for clause, row in found["clauses"].items() if row.get("worst"))
    print(f"\nlargest error ÷ budget, of {len(worst)} clauses")
    for ratio, clause, by in reversed(worst[-SHOWN:]):
        print(f"{clause:<24} {ratio:.3f}  {by}")
    vague = vague_clauses(found)
    for clause in vague:
        print(f"{clause:<24} leaves {found['clauses'][clause]['undecided']:.1%} of its cases undecided")
    silent = [clause for clause, row in found["clauses"].items() if not row["cases"]]
    print(f"\nclauses without a decided case: {', '.join(silent) or 'none'}")
    for alarm in found["raised"]:
        print(alarm_line(alarm["clause"], alarm))
    print(f"{found['cases']:,} cases in {found['seconds']:,} CPU seconds, {found['alarms']} alarms")
    return 1 if found["alarms"] or vague else 0
