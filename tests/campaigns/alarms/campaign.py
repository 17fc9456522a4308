"""Rounds of new cases on every right implementation; each clause, subject and dtype gives one journal entry."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from conformance.judgement.result import ANY_DTYPE, PASS
from conformance.run.case_search import Examination
from conformance.run.profiles import Profile
from conformance.specification.clause import Clause, load_all
from conformance.target.target import Target
from tests.campaigns.variants import VARIANTS
from tests.campaigns.variants.conventions import CONVENTIONS

RIGHT = VARIANTS | {name: thing for name, (thing, _) in CONVENTIONS.items()}
# These implementations are judged in all groups they claim, the variants only in the groups of the formula, and the
# layers of a convention only by the clauses in which it shows.
WHOLE = ("reference", "optimized", "conformance.targets.peft", "conformance.targets.loralib")
WHOLE += ("conformance.targets.torchtune",)
# torch.compile takes seconds for each new kind of operand; `loraspec run` judges these clauses.
SLOW = ("LIN-COMPILE", "LAY-COMPILE", "FUS-COMPILE", "LIFE-LAYER-COMPILE")
# These implementations recompile for each kind of operand and get this share of the cases.
COSTLY = {"compiled": 0.1}


@dataclass(frozen=True)
class Entry:
    """The result of one clause on one right implementation in one round.

    Attributes:
        volume: requested cases.   cases: decided cases.   inconclusive: undecided cases.
        worst: largest error ÷ budget.   message: the case and its message, unless the clause passed.
    """

    name: str
    dtype: str
    round: int
    volume: int
    clause: str
    subject: str
    status: str
    cases: int
    inconclusive: int
    worst: float | None
    message: str | None = None


def targets() -> list[str]:
    """Return the name of every right implementation."""
    return [*RIGHT, *WHOLE]


def loaded(name: str) -> Target:
    """Return a right implementation as a target."""
    return Target.of(RIGHT[name], name) if name in RIGHT else Target.of(importlib.import_module(name), name)


def entries(name: str, number: int, volume: int) -> Iterator[Entry]:
    """Judge one round: every clause that the implementation claims, in every dtype; the round's number is the seed."""
    target = loaded(name)
    profile = Profile("round", volume=max(1, round(volume * COSTLY.get(name, 1))), interpreted=2, seed=number)
    for clause in load_all().values():
        if clause.id in SLOW or clause.id in target.deviations:
            continue
        if name in CONVENTIONS and clause.id not in CONVENTIONS[name][1]:
            continue
        for dtype in clause.dtypes or (ANY_DTYPE,):
            for subject in target.subjects(clause) if dtype in (*target.dtypes, ANY_DTYPE) else ():
                yield _entry(clause, subject, dtype, name, profile)


def _entry(clause: Clause, subject: Any, dtype: str, name: str, profile: Profile) -> Entry:
    result = Examination(clause, subject, dtype, profile).run()
    message = None if result.status == PASS else f"{result.case}: {result.message}"
    return Entry(
        name,
        dtype,
        profile.seed,
        profile.volume,
        clause.id,
        subject.name,
        result.status,
        result.examples,
        result.inconclusive,
        result.worst_ratio,
        message,
    )
