"""The clauses of group `distributed` as a table: verdict and seconds by strategy and number of ranks."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from conformance.clauses.distributed.ranks import prepare
from conformance.errors import UsageError, known
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.specification.clause import Clause, load_all
from conformance.target.check_case import check_case
from conformance.target.subject import Subject
from conformance.target.target import Target

GROUP = "distributed"
ONLY = {"DIS-DDP": "ddp", "DIS-FSDP": "fsdp", "DIS-COLWISE": "colwise", "DIS-ROWWISE": "rowwise"}
TRIES = 8  # cases drawn at most for one conclusive case
Cell = dict[str, Any]


def judged(spec: str, worlds: Sequence[int], cases: int, clauses: Sequence[str] | None = None) -> list[Cell]:
    """A cell for each clause, subject, strategy and number of ranks, in the clause's first dtype.

    Raises:
        UsageError: if the target claims no clause of the group, or a clause is not in the group.
        TargetError: if the target does not import.
    """
    torch.set_num_threads(1)  # the ranks share the cores
    prepare()
    members = {name: clause for name, clause in load_all().items() if clause.group == GROUP}
    if clauses:
        known(list(clauses), members, f"clause of group {GROUP}")
    target = Target.load(spec)
    chosen = [clause for name, clause in members.items() if not clauses or name in clauses]
    pairs = [(clause, subject) for clause in chosen for subject in target.subjects(clause)]
    if not pairs:
        lacking = ", ".join(dict.fromkeys(name for clause in chosen for name in target.lacking(clause)))
        raise UsageError(f"target {spec!r} claims no clause of group {GROUP}: it has no {lacking}")
    return [
        _cell(clause, subject, strategy, world, cases)
        for clause, subject in pairs
        for strategy in _strategies(clause)
        for world in worlds
        if world in clause.cases.values["world"]
    ]


def _strategies(clause: Clause) -> tuple[str, ...]:
    fields = clause.cases.values
    return fields.get("strategy") or fields.get("spread") or (ONLY[clause.id],)


def _cell(clause: Clause, subject: Subject, strategy: str, world: int, cases: int) -> Cell:
    """The result of `cases` conclusive cases, or of the first failing one, with the median seconds of a case."""
    field = "spread" if "spread" in clause.cases.values else "strategy"
    seconds: list[float] = []
    cell: Cell = {"clause": clause.id, "subject": subject.name, "strategy": strategy, "ranks": world}
    for index in range(cases * TRIES):
        case = clause.cases.draw(0, clause.id, index, dtype=clause.dtypes[0])
        chosen: dict[str, Any] = {"world": world, field: strategy}
        case = clause.cases.tame(dataclasses.replace(case, **chosen))
        started = time.perf_counter()
        try:
            check_case(clause, subject, case)
        except Inconclusive:
            continue
        except (Violation, Refused) as outcome:
            return cell | {"status": "fail", "seconds": time.perf_counter() - started, "message": f"{case}: {outcome}"}
        seconds.append(time.perf_counter() - started)
        if len(seconds) == cases:
            return cell | {"status": "pass", "seconds": statistics.median(seconds)}
    return cell | {"status": "inconclusive", "seconds": 0.0}


def markdown(cells: Sequence[Cell]) -> str:
    """A table with a row for each clause, subject and strategy and a column for each number of ranks; then failures."""
    worlds = sorted({cell["ranks"] for cell in cells})
    rows: dict[tuple[str, str, str], dict[int, Cell]] = {}
    for cell in cells:
        rows.setdefault((cell["clause"], cell["subject"], cell["strategy"]), {})[cell["ranks"]] = cell
    head = ["clause", "subject", "strategy", *(f"{world} rank{'s' * (world > 1)}" for world in worlds)]
    lines = [head, ["---"] * len(head)]
    for key, found in rows.items():
        lines.append([*key, *(_shown(found[world]) if world in found else "" for world in worlds)])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    failed = [cell for cell in cells if "message" in cell]
    for cell in failed:
        text += f"\nFAIL {cell['clause']} {cell['subject']} {cell['message']}\n"
    total = sum(cell["seconds"] for cell in cells)
    return f"{text}\n{len(cells)} cells, {len(failed)} failing, {total:.1f} s\n"


def _shown(cell: Cell) -> str:
    return f"{cell['status']}, {cell['seconds']:.2f} s" if cell["status"] != "inconclusive" else "inconclusive"
