"""Rounds of new cases on right implementations; each clause gives one journal entry a round."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cache
from typing import Any
from zlib import crc32

import torch

from conformance.errors import known, matched
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.run.case_search import Examination
from conformance.run.profiles import Profile
from conformance.specification.clause import MUST, REGISTRY, Clause, load_all
from conformance.target.check_case import check_case
from conformance.target.target import Target
from tests.campaigns.alarms.shares import Judge, dtypes_of, shares
from tests.campaigns.variants.catalogue import LIBRARIES, RightImplementation, catalogue, peers

# Cases differ from those of every profile, whose seed is 0. To draw a covering array takes longer than to judge it.
PROFILE = Profile("alarms", volume=1, interpreted=1, seed=1, shrinks=0, strength=1)
SHOWN = 1500  # characters of a message in the journal


@dataclass
class Entry:
    """What one clause said of right implementations in one round.

    Attributes:
        date: the day.   seconds: CPU time.   worst: the largest error ÷ budget, and whose it is.
        decided, undecided: cases by dtype.   by: decided cases by implementation.
        alarms: a record of each case that failed: implementation, subject, dtype, case, message.
    """

    round: int
    clause: str
    date: str = ""
    seconds: float = 0.0
    decided: dict[str, int] = field(default_factory=dict)
    undecided: dict[str, int] = field(default_factory=dict)
    by: dict[str, int] = field(default_factory=dict)
    worst: tuple[float, str] | None = None
    alarms: list[dict[str, Any]] = field(default_factory=list)


def right_implementations(only: Iterable[str] = ()) -> dict[str, RightImplementation]:
    """Every right implementation that is installed, or some of them by name.

    Raises:
        UsageError: if a name is unknown, with the nearest.
    """
    only, every = list(only), catalogue()
    if not only or set(only) - set(every):
        every = {**every, **peers()}  # to import them takes seconds
    known(only, every, "right implementation")
    return {name: every[name] for name in only or every}


@cache
def implementation(name: str) -> RightImplementation:
    """One right implementation."""
    return right_implementations([name])[name]


def clauses(pattern: str = "*") -> list[Clause]:
    """The clauses whose ids match a pattern.

    Raises:
        UsageError: if there is none, with the nearest.
    """
    every = load_all()
    matched([pattern], every, "clause")
    return [clause for name, clause in every.items() if fnmatchcase(name, pattern)]


@cache
def target_named(name: str) -> Target:
    """A right implementation as a target."""
    return Target.of(implementation(name).make(), name)


@cache
def judged_subjects(name: str, clause_id: str) -> tuple[Any, ...]:
    """The subjects of a right implementation that a clause must pass; a SHOULD clause is for the libraries alone."""
    clause = REGISTRY[clause_id]
    if (clause.level != MUST and name not in LIBRARIES) or not implementation(name).must_pass(clause):
        return ()
    return () if clause_id in target_named(name).deviations else target_named(name).subjects(clause)


def judges(clause: Clause, names: Iterable[str]) -> dict[str, list[Judge]]:
    """For each dtype of a clause, whom it judges."""
    found: dict[str, list[Judge]] = {dtype: [] for dtype in dtypes_of(clause)}
    for name in names:
        for subject in judged_subjects(name, clause.id):
            for dtype, able in found.items():
                if dtype not in clause.dtypes or dtype in target_named(name).dtypes:
                    able.append(Judge(name, subject.name))
    return found


def entry(clause: Clause, names: Iterable[str], rate: float, number: int) -> Entry:
    """Judge a clause's share of one round."""
    started = time.process_time()
    found = Entry(number, clause.id, datetime.now(UTC).date().isoformat())
    counts: dict[str, Counter[str]] = {"decided": Counter(), "undecided": Counter(), "by": Counter()}
    first = crc32(clause.id.encode())  # clauses begin with different implementations, so that few rounds meet all
    for share in shares(judges(clause, names), rate, number, first):
        judge = share.judge
        subject = next(s for s in judged_subjects(judge.implementation, clause.id) if s.name == judge.subject)
        case = Examination(clause, subject, share.dtype, PROFILE).case(share.index)
        status, ratio, message = outcome(clause, subject, case)
        counts["undecided" if status == "undecided" else "decided"][share.dtype] += 1
        counts["by"][judge.implementation] += status != "undecided"
        if status == "alarm":
            told = {"case": str(case), "message": message[:SHOWN]}
            found.alarms.append({**asdict(judge), "dtype": share.dtype, **told})
        elif ratio is not None and ratio > (found.worst or (0.0,))[0]:
            found.worst = ratio, f"{judge.implementation}, {share.dtype}"
    found.decided, found.undecided, found.by = map(dict, counts.values())
    found.seconds = round(time.process_time() - started, 4)
    return found


def forget_compiled() -> None:
    """Let go of what torch has compiled, which else grows, and after some kinds of operands is compiled no more."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def outcome(clause: Clause, subject: Any, case: Any) -> tuple[str, float | None, str]:
    """What a case says: `right`, `undecided` or `alarm`; its error ÷ budget, and the message of an alarm."""
    try:
        return "right", check_case(clause, subject, case), ""
    except Inconclusive as reason:
        return "undecided", None, str(reason)
    except (Violation, Refused) as alarm:
        return "alarm", None, str(alarm)


def judge_again(alarm: dict[str, Any], clause_id: str) -> tuple[str, float | None, str]:
    """Judge the case of an alarm by today's clause; `not asked` if a finding or a deviation says that it fails."""
    clause = load_all()[clause_id]
    subjects = {s.name: s for s in judged_subjects(alarm["implementation"], clause_id)}
    if alarm["subject"] not in subjects:
        return "not asked", None, ""
    return outcome(clause, subjects[alarm["subject"]], clause.cases.case_type.parse(alarm["case"]))
