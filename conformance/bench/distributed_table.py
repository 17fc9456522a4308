"""The clauses of group `distributed` as a table: verdict and seconds by strategy and number of ranks."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from conformance.clauses.distributed.ranks import prepare
from conformance.errors import UsageError, known
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.report.record_json import as_json
from conformance.specification.clause import Clause, load_all
from conformance.target.check_case import check_case
from conformance.target.subject import Subject
from conformance.target.target import Target

GROUP = "distributed"
ONLY = {"DIS-DDP": "ddp", "DIS-FSDP": "fsdp", "DIS-COLWISE": "colwise", "DIS-ROWWISE": "rowwise"}
TRIES = 8  # cases drawn for each conclusive case


@dataclass(frozen=True)
class RankCell:
    """A clause on a subject, by one strategy on a number of ranks.

    Attributes:
        seconds: the time of the median case, or of the failing one.   message: the failing case and its error.
    """

    clause: str
    subject: str
    strategy: str
    ranks: int
    status: str
    seconds: float
    message: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The cell as a JSON object, which has a message only if the cell fails."""
        found: dict[str, Any] = as_json(self)
        return {key: value for key, value in found.items() if key != "message" or value is not None}


def judged(spec: str, worlds: Sequence[int], cases: int, clauses: Sequence[str] | None = None) -> list[RankCell]:
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


def _cell(clause: Clause, subject: Subject, strategy: str, world: int, cases: int) -> RankCell:
    """Check cases until `cases` of them are conclusive or one fails. A passing cell has the median of their times."""
    field = "spread" if "spread" in clause.cases.values else "strategy"
    seconds: list[float] = []
    cell = partial(RankCell, clause.id, subject.name, strategy, world)
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
            return cell("fail", time.perf_counter() - started, f"{case}: {outcome}")
        seconds.append(time.perf_counter() - started)
        if len(seconds) == cases:
            return cell("pass", statistics.median(seconds))
    return cell("inconclusive", 0.0)


def markdown(cells: Sequence[RankCell]) -> str:
    """A row for each clause, subject and strategy, a column for each number of ranks; then the failures."""
    worlds = sorted({cell.ranks for cell in cells})
    rows: dict[tuple[str, str, str], dict[int, RankCell]] = {}
    for cell in cells:
        rows.setdefault((cell.clause, cell.subject, cell.strategy), {})[cell.ranks] = cell
    head = ["clause", "subject", "strategy", *(f"{world} rank{'s' * (world > 1)}" for world in worlds)]
    lines = [head, ["---"] * len(head)]
    for key, found in rows.items():
        lines.append([*key, *(_shown(found[world]) if world in found else "" for world in worlds)])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    failed = [cell for cell in cells if cell.message is not None]
    for cell in failed:
        text += f"\nFAIL {cell.clause} {cell.subject} {cell.message}\n"
    total = sum(cell.seconds for cell in cells)
    return f"{text}\n{len(cells)} cells, {len(failed)} failing, {total:.1f} s\n"


def _shown(cell: RankCell) -> str:
    return f"{cell.status}, {cell.seconds:.2f} s" if cell.status != "inconclusive" else "inconclusive"
