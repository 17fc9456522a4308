"""Rounds of fresh cases on every right implementation, one journal line for each clause, subject and dtype."""

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

# whole implementations, in all groups they claim; the variants are judged in the groups of the formula
WHOLE = ("reference", "optimized", "conformance.targets.peft", "conformance.targets.loralib")
WHOLE += ("conformance.targets.torchtune",)
# torch.compile for every new kind of operand takes seconds: `loraspec run` judges these
SLOW = ("LIN-COMPILE", "LAY-COMPILE", "FUS-COMPILE")
# these recompile for every kind of operand: fewer cases of them
COSTLY = {"compiled": 0.1}


@dataclass(frozen=True)
class Entry:
    """What one clause said of one right implementation in one round.

    Attributes:
        volume: cases asked for.   cases: those that decided something.   inconclusive: those that did not.
        worst: largest error ÷ budget.   message: what was said where it was no pass.
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
    """The name of every right implementation."""
    return [*VARIANTS, *WHOLE]


def loaded(name: str) -> Target:
    """A right implementation as a target."""
    return Target.of(VARIANTS[name], name) if name in VARIANTS else Target.of(importlib.import_module(name), name)


def entries(name: str, number: int, volume: int) -> Iterator[Entry]:
    """One round: every clause that the implementation claims, in every dtype, on cases of its own seed."""
    target = loaded(name)
    profile = Profile("round", volume=max(1, round(volume * COSTLY.get(name, 1))), interpreted=2, seed=number)
    for clause in load_all().values():
        if clause.id in SLOW or clause.id in target.deviations:
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
