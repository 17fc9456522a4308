"""All known-bad twins, and functions that judge a twin by its own clause and by the other clauses of its groups."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
import pkgutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from conformance.isolation.monkeypatches import PRISTINE
from conformance.judgement.result import ANY_DTYPE, Result
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES, Profile
from conformance.specification.clause import REGISTRY as CLAUSES
from conformance.specification.clause import Clause, load_all
from conformance.target.subject import Subject
from conformance.target.target import Target
from tests import known_bad
from tests.known_bad import REGISTRY, KnownBad
from tests.support import first_failures
from tests.support.first_failures import Place

# torch.compile, hundreds of calls, and keys take seconds for each twin and detect the same defects as a plain call.
SLOW = ("LIN-COMPILE", "LAY-COMPILE", "FUS-COMPILE", "LIFE-LAYER-COMPILE", "LIN-MEM-LEAK", "LAY-MEM-LEAK")
SLOW += ("FHE-EXECUTE", "FHE-EXECUTE-NOISE", "BAT-META-COMPILE", "EXP-COMPILE")
# Twins of these groups are judged only by their own clause, since they create keys, files or processes.
ALONE = ("remote", "checkpoint", "distributed")
WHOLE = "MOD-ARCH-"  # these clauses build transformers models: they and their twins meet no others
# One case decides whether a clause other than the twin's own also detects the defect.
OTHER = dataclasses.replace(PROFILES["quick"], volume=1, shrinks=0, shares=False)
load_all()
for module in pkgutil.walk_packages(known_bad.__path__, f"{known_bad.__name__}."):
    importlib.import_module(module.name)


@contextmanager
def begun(bad: KnownBad) -> Iterator[Target]:
    """Yield a twin as a target; reset its state first, and shorten the waiting times for a twin that never ends."""
    from conformance.clauses.remote import unreachable_server

    reset(bad)
    bound, seconds = unreachable_server.BOUND, os.environ.get("LORASPEC_RANK_SECONDS")
    unreachable_server.BOUND = 2.0 if "does not end within" in bad.says else bound
    os.environ["LORASPEC_RANK_SECONDS"] = "3" if "not ended within" in bad.says else "60"
    try:
        yield Target.of(bad.target, bad.name)
    finally:
        with PRISTINE.suspended():
            pass  # undoes everything that the twin has replaced
        unreachable_server.BOUND = bound
        del os.environ["LORASPEC_RANK_SECONDS"]
        if seconds is not None:
            os.environ["LORASPEC_RANK_SECONDS"] = seconds


def pairs(bad: KnownBad, target: Target, clause: Clause) -> list[tuple[Subject, str]]:
    """Return the subjects and dtypes in which a clause judges a twin."""
    dtypes = [d for d in clause.dtypes if d in bad.dtypes] or list(clause.dtypes[:1]) or [ANY_DTYPE]
    return list(itertools.product(target.subjects(clause), dtypes))


def own_failure(bad: KnownBad, profile: Profile, *, search: bool = False) -> Result | None:
    """Return a result of a twin's own clause that does not pass: at the recorded place, or else the first.

    Args:
        search: to return the first in any case.
    """
    place = None if search else first_failures.read().get(bad.name)
    recorded = failure_at(bad, profile, place) if place else None
    return recorded or next((result for result, _ in failures(bad, profile)), None)


def first_place(bad: KnownBad, profile: Profile) -> Place | None:
    """Return the place to record for a twin: the recorded one if it still fails there, or that of its first failure.

    It is None if that is the very first case, or if the twin passes that case when none comes before.
    """
    place = first_failures.read().get(bad.name)
    if place is None or failure_at(bad, profile, place) is None:
        place = next((place for _, place in failures(bad, profile)), None)
    with begun(bad) as target:
        subject, dtype = pairs(bad, target, CLAUSES[bad.clause])[0]
    return place if place not in (None, (subject.name, dtype, 0)) and failure_at(bad, profile, place) else None


def failure_at(bad: KnownBad, profile: Profile, place: Place) -> Result | None:
    """Judge a twin by one case of its own clause; return the result if it does not pass."""
    clause, (name, dtype, number) = CLAUSES[bad.clause], place
    with begun(bad) as target:
        for subject in (one for one in target.subjects(clause) if one.name == name):
            result = Examination(clause, subject, dtype, profile).only(number)
            return None if result.status == "pass" else result
    return None


def failures(bad: KnownBad, profile: Profile) -> Iterator[tuple[Result, Place]]:
    """Yield the results of a twin's own clause, over all subjects and dtypes, that do not pass, and their places."""
    clause = CLAUSES[bad.clause]
    with begun(bad) as target:
        for subject, dtype in pairs(bad, target, clause):
            trial = Examination(clause, subject, dtype, profile)
            result = trial.run()
            if result.status != "pass":
                yield result, (subject.name, dtype, trial.last)


def others(bad: KnownBad) -> list[Clause]:
    """Return the clauses that judge a twin besides its own."""
    found = [clause for clause in CLAUSES.values() if clause.group in bad.groups and clause.id != bad.clause]
    return [c for c in found if c.id not in SLOW and c.group not in ALONE and WHOLE not in c.id + bad.clause]


def failed(bad: KnownBad, clauses: Iterable[Clause]) -> list[Clause]:
    """Judge a twin by one case of each of these clauses and return those it does not pass."""
    found = []
    with begun(bad) as target:
        for clause in clauses:
            reset(bad)
            for subject, dtype in pairs(bad, target, clause)[:1]:
                if Examination(clause, subject, dtype, OTHER).run().status != "pass":
                    found.append(clause)
    return found


def reset(bad: KnownBad) -> None:
    """Reset the state of a twin that keeps any."""
    getattr(bad.target, "reset", lambda: None)()


__all__ = ["CLAUSES", "REGISTRY", "KnownBad", "begun", "failed", "failure_at", "first_place", "others", "own_failure"]
__all__ += ["pairs"]
