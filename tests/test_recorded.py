"""Recorded failures of known-bad twins are judged again when a twin, a clause or a recorded set changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import recorded_failures
from tests.support.recorded_failures import Digests, Sets, Sources
from tests.support.twins import REGISTRY

TWINS, CLAUSES = "tests.known_bad.config.round_trip", "conformance.clauses.config.refusals"


@pytest.fixture(scope="module")
def sets() -> Sets:
    return recorded_failures.sets_in()


@pytest.fixture(scope="module")
def fresh(sets: Sets) -> Digests:
    """The digests of the present sources and sets."""
    sources = Sources()
    return {
        twins: {clauses: sources.digest(twins, clauses, sets) for clauses in met}
        for twins, met in recorded_failures.meetings().items()
        if met
    }


def stale(sources: Sources, sets: Sets, digests: Digests) -> set[tuple[str, str]]:
    """The pairs (file of twins, file of clauses) that must be judged again."""
    return {(twins, name) for twins in recorded_failures.meetings() for name in sources.stale(twins, sets, digests)}


def changed(module: str) -> Sources:
    """The sources with one line added to a module."""
    return Sources({module: Sources().text(module) + b"# a line more\n"})


def test_nothing_is_judged_again_without_a_change(sets: Sets, fresh: Digests) -> None:
    assert stale(Sources(), sets, fresh) == set()


def test_a_changed_clause_file_is_judged_again_on_all_twins_of_its_group(sets: Sets, fresh: Digests) -> None:
    meeting = {(twins, CLAUSES) for twins, met in recorded_failures.meetings().items() if CLAUSES in met}
    assert len(meeting) > 1
    assert stale(changed(CLAUSES), sets, fresh) == meeting


def test_a_changed_twin_file_or_its_import_is_judged_again_on_all_clauses(sets: Sets, fresh: Digests) -> None:
    own = {(TWINS, clauses) for clauses in recorded_failures.meetings()[TWINS]}
    assert len(own) > 1
    assert stale(changed(TWINS), sets, fresh) == own
    assert stale(changed("tests.known_bad.config.config_classes"), sets, fresh) > own
    assert stale(changed("tests.baselines.model"), sets, fresh) & own == set()


def test_imports_within_a_group_are_followed(sets: Sets, fresh: Digests) -> None:
    assert "conformance.clauses.config.field_values" in Sources().closure(CLAUSES)
    assert "conformance.judgement.judge" not in Sources().closure(CLAUSES)
    assert {clauses for _, clauses in stale(changed("conformance.clauses.config.field_values"), sets, fresh)} >= {
        CLAUSES
    }


def test_an_edited_set_is_judged_again_and_its_differences_are_listed(sets: Sets, fresh: Digests) -> None:
    met = recorded_failures.meetings()[TWINS][CLAUSES]
    lost = recorded_failures.said(met, sets)[0]
    added = next(pair for pair in met if pair not in recorded_failures.said(met, sets))
    edited = {name: set(found) for name, found in sets.items()}
    edited[lost[0]].discard(lost[1])
    edited[added[0]].add(added[1])
    listed = {name: sorted(found) for name, found in edited.items()}
    assert stale(Sources(), listed, fresh) == {(TWINS, CLAUSES)}
    judged = recorded_failures.judged(TWINS, [CLAUSES])
    said = {f"{lost[0]} fails, but the failure is not recorded: {lost[1]}", f"{added[0]} no longer fails: {added[1]}"}
    assert set(recorded_failures.differences(judged, listed)) == said
    assert recorded_failures.differences(judged, sets) == []


def test_recording_updates_only_the_judged_pairs(sets: Sets, fresh: Digests) -> None:
    assert recorded_failures.updated({}, sets, fresh) == (sets, fresh)
    wrong = {name: [bad.clause] for name, bad in REGISTRY.items()}  # as if every twin were new
    right = recorded_failures.said(recorded_failures.meetings()[TWINS][CLAUSES], sets)
    new, digests = recorded_failures.updated({(TWINS, CLAUSES): right}, wrong, {})
    assert {(name, clause) for name, found in new.items() for clause in found if clause not in wrong[name]} == {*right}
    assert digests == {TWINS: {CLAUSES: fresh[TWINS][CLAUSES]}}


def test_the_record_has_one_line_per_twin_sorted_by_name(sets: Sets, tmp_path: Path) -> None:
    recorded_failures.write(tmp_path / "sets.json", sets)
    assert recorded_failures.SETS.read_text() == (tmp_path / "sets.json").read_text()
    lines = recorded_failures.SETS.read_text().splitlines()[1:-1]
    assert [json.loads(f"{{{line.rstrip(',')}}}") for line in lines] == [{name: sets[name]} for name in sorted(sets)]
