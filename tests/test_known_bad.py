"""Every known-bad twin fails its own clause with the expected message, and exactly the recorded other clauses."""

from __future__ import annotations

import dataclasses
import re

import pytest

from conformance.judgement.result import ANY_DTYPE
from conformance.run.profiles import PROFILES, Profile
from conformance.target.target import Target
from tests.support import deaths, first_failures, recorded_failures
from tests.support.first_failures import Place
from tests.support.recorded_failures import Sources
from tests.support.twins import CLAUSES, REGISTRY, KnownBad, failure_at, first_place, others, own_failure

SHRINKS = 60
# shrinking attempts for groups in which each attempt writes files or starts processes
FEWER = {"checkpoint": 12, "distributed": 0}
# the first twin of each file whose clause has weight 1: only its case is shrunk
FIRST = {bad.module: bad.name for bad in reversed(REGISTRY.values()) if CLAUSES[bad.clause].weight == 1}


def profile(bad: KnownBad, *, shrunk: bool) -> Profile:
    """The quick profile for a twin's own clause; the failing case is shrunk only if `shrunk`."""
    shrinks = FEWER.get(CLAUSES[bad.clause].group, SHRINKS) if shrunk else 0
    return dataclasses.replace(PROFILES["quick"], shrinks=shrinks)


@pytest.mark.parametrize("bad", REGISTRY.values(), ids=REGISTRY)
def test_a_twin_fails_its_own_clause_with_the_expected_message(bad: KnownBad, request: pytest.FixtureRequest) -> None:
    # Shrinking rarely changes the message. It is done for one twin per file, for twins whose message needs it, and for
    # all twins with --whole-known-bad.
    whole, recording = (request.config.getoption(f"--{option}-known-bad") for option in ("whole", "record"))
    shrunk = whole or bad.name in FIRST.values()
    failed = own_failure(bad, profile(bad, shrunk=shrunk), search=whole)
    if not shrunk and failed is not None and bad.says not in (failed.message or ""):
        failed = own_failure(bad, profile(bad, shrunk=True), search=whole)
    if recording:
        place = first_place(bad, profile(bad, shrunk=False))
        request.node.user_properties.append(("first_failure", [bad.name, place]))
    assert failed is not None, f"{bad.name} passes {bad.clause}"
    message = failed.message or ""
    assert bad.says in message, f"{bad.clause} does not say {bad.says!r} but:\n{message}"
    if CLAUSES[bad.clause].group == "checkpoint":
        assert re.search("(save|load)_(adapter|training)", message), f"the message names no function:\n{message}"


@pytest.mark.parametrize("twins", recorded_failures.meetings())
def test_twins_fail_exactly_the_recorded_other_clauses(twins: str, request: pytest.FixtureRequest) -> None:
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


def test_the_record_names_existing_twins_and_their_clauses() -> None:
    sets = recorded_failures.sets_in()
    assert set(sets) == set(REGISTRY)
    unknown = {
        name: found
        for name, bad in REGISTRY.items()
        if (found := set(sets[name]) - {clause.id for clause in others(bad)}) != {bad.clause}
    }
    assert not unknown, "expected of each, besides clauses it is judged by, its own"


def test_a_twin_that_passes_at_its_recorded_place_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = next(bad for bad in REGISTRY.values() if bad.clause == "CFG-DEFAULTS")
    subject = Target.of(bad.target, bad.name).subjects(CLAUSES[bad.clause])[0]
    beyond: Place = (subject.name, ANY_DTYPE, 10**6)
    for place in (beyond, ("gone", ANY_DTYPE, 0)):
        monkeypatch.setattr(first_failures, "read", lambda place=place: {bad.name: place})
        assert failure_at(bad, profile(bad, shrunk=False), place) is None
        assert own_failure(bad, profile(bad, shrunk=False)) is not None


def test_recorded_places_are_of_existing_twins() -> None:
    assert set(first_failures.read()) <= set(REGISTRY)


def test_every_clause_has_a_known_bad_twin() -> None:
    without = set(CLAUSES) - {bad.clause for bad in REGISTRY.values()}
    assert not without, f"no known-bad twin for {', '.join(sorted(without))}"


def test_the_number_of_cases_that_kill_a_twin_is_recorded_for_every_clause() -> None:
    twins = [bad.clause for bad in REGISTRY.values()]
    found = {name: count for name, (_, count) in deaths.read().items()}
    assert found == {name: twins.count(name) for name in CLAUSES}, "run `python -m tests.support.deaths --measure`"
