"""Every known-bad twin fails its clause with the expected message, and of the others just those recorded for it."""

from __future__ import annotations

import dataclasses

import pytest

from conformance.run.profiles import PROFILES, Profile
from tests.support import deaths, recorded_failures
from tests.support.recorded_failures import Sources
from tests.support.twins import CLAUSES, REGISTRY, KnownBad, others, own_failure

SHRINKS = 60
# groups of which each attempt writes files, or starts processes
FEWER = {"checkpoint": 12, "distributed": 0}
# of each file the first twin whose clause costs little
FIRST = {bad.module: bad.name for bad in reversed(REGISTRY.values()) if CLAUSES[bad.clause].weight == 1}


def profile(bad: KnownBad, *, shrunk: bool) -> Profile:
    """The cases that a quick run spends on a twin's own clause, and the search for a smaller one where asked for."""
    shrinks = FEWER.get(CLAUSES[bad.clause].group, SHRINKS) if shrunk else 0
    return dataclasses.replace(PROFILES["quick"], shrinks=shrinks)


@pytest.mark.parametrize("bad", REGISTRY.values(), ids=REGISTRY)
def test_a_twin_fails_its_own_clause_and_is_told_why(bad: KnownBad, request: pytest.FixtureRequest) -> None:
    # the smaller case says the same in almost all: it is looked for in one of a file, where nothing else says it, and
    # in all of them now and then
    shrunk = request.config.getoption("--whole-known-bad") or bad.name in FIRST.values()
    failed = own_failure(bad, profile(bad, shrunk=shrunk))
    if not shrunk and failed is not None and bad.says not in (failed.message or ""):
        failed = own_failure(bad, profile(bad, shrunk=True))
    assert failed is not None, f"{bad.name} passes {bad.clause}"
    message = failed.message or ""
    assert bad.says in message, f"{bad.clause} does not say {bad.says!r} but:\n{message}"


@pytest.mark.parametrize("twins", recorded_failures.meetings())
def test_twins_fail_the_other_clauses_that_are_recorded(twins: str, request: pytest.FixtureRequest) -> None:
    sets = recorded_failures.sets_in()
    whole, recording = (request.config.getoption(f"--{option}-known-bad") for option in ("whole", "record"))
    files = (
        recorded_failures.meetings()[twins] if whole else Sources().stale(twins, sets, recorded_failures.digests_in())
    )
    judged = recorded_failures.judged(twins, files)
    if recording:
        request.node.user_properties.append(("known_bad", [[*pair, fails] for pair, fails in judged.items()]))
    else:
        lines = recorded_failures.differences(judged, sets)
        assert not lines, "\n".join([*lines, "right? then `pytest tests/test_known_bad.py --record-known-bad`"])


def test_what_is_recorded_are_twins_and_clauses_they_are_judged_by() -> None:
    sets = recorded_failures.sets_in()
    assert set(sets) == set(REGISTRY)
    unknown = {
        name: found
        for name, bad in REGISTRY.items()
        if (found := set(sets[name]) - {clause.id for clause in others(bad)}) != {bad.clause}
    }
    assert not unknown, "expected of each, besides clauses it is judged by, its own"


def test_every_clause_has_a_known_bad_twin() -> None:
    without = set(CLAUSES) - {bad.clause for bad in REGISTRY.values()}
    assert not without, f"no known-bad twin for {', '.join(sorted(without))}"


def test_the_cases_at_which_twins_die_are_recorded() -> None:
    twins = [bad.clause for bad in REGISTRY.values()]
    found = {name: count for name, (_, count) in deaths.read().items()}
    assert found == {name: twins.count(name) for name in CLAUSES}, "run `python -m tests.support.deaths --measure`"
