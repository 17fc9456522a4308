"""What was recorded of the known-bad twins is judged again where a twin, a clause, or a recorded set has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import recorded_failures
from tests.support.recorded_failures import Digests, Sets, Sources
from tests.support.twins import REGISTRY

TWINS, CLAUSES = "tests.known_bad.config.refusals", "conformance.clauses.config.round_trip"


@pytest.fixture(scope="module")
def sets() -> Sets:
    return recorded_failures.sets_in()


@pytest.fixture(scope="module")
def fresh(sets: Sets) -> Digests:
    """The digests as if all were recorded now."""
    sources = Sources()
    return {
        twins: {clauses: sources.digest(twins, clauses, sets) for clauses in met}
        for twins, met in recorded_failures.meetings().items()
        if met
    }


def stale(sources: Sources, sets: Sets, digests: Digests) -> set[tuple[str, str]]:
    """The pairs of files that must be judged again."""
    return {(twins, name) for twins in recorded_failures.meetings() for name in sources.stale(twins, sets, digests)}


def changed(module: str) -> Sources:
    """The sources, with a line more in one of them."""
    return Sources({module: Sources().text(module) + b"# a line more\n"})


def test_nothing_is_judged_again_while_nothing_changes(sets: Sets, fresh: Digests) -> None:
    assert stale(Sources(), sets, fresh) == set()


def test_a_changed_file_of_clauses_is_noticed_by_all_twins_of_its_group(sets: Sets, fresh: Digests) -> None:
    meeting = {(twins, CLAUSES) for twins, met in recorded_failures.meetings().items() if CLAUSES in met}
    assert len(meeting) > 1
    assert stale(changed(CLAUSES), sets, fresh) == meeting


def test_a_changed_file_of_twins_is_noticed_with_all_clauses_and_so_is_what_it_imports(
    sets: Sets, fresh: Digests
) -> None:
    own = {(TWINS, clauses) for clauses in recorded_failures.meetings()[TWINS]}
    assert len(own) > 1
    assert stale(changed(TWINS), sets, fresh) == own
    assert stale(changed("tests.known_bad.config.config_classes"), sets, fresh) > own
    assert stale(changed("tests.baselines.model"), sets, fresh) & own == set()


def test_an_import_of_the_same_group_is_followed(sets: Sets, fresh: Digests) -> None:
    assert "conformance.clauses.config.field_values" in Sources().closure(CLAUSES)
    assert "conformance.judgement.judge" not in Sources().closure(CLAUSES)
    assert {clauses for _, clauses in stale(changed("conformance.clauses.config.field_values"), sets, fresh)} >= {
        CLAUSES
    }


def test_an_edited_set_is_noticed_and_said(sets: Sets, fresh: Digests) -> None:
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


def test_recording_changes_what_was_judged_and_nothing_else(sets: Sets, fresh: Digests) -> None:
    assert recorded_failures.updated({}, sets, fresh) == (sets, fresh)
    wrong = {name: [bad.clause] for name, bad in REGISTRY.items()}  # as of twins that are all new
    right = recorded_failures.said(recorded_failures.meetings()[TWINS][CLAUSES], sets)
    new, digests = recorded_failures.updated({(TWINS, CLAUSES): right}, wrong, {})
    assert {(name, clause) for name, found in new.items() for clause in found if clause not in wrong[name]} == {*right}
    assert digests == {TWINS: {CLAUSES: fresh[TWINS][CLAUSES]}}


def test_an_entry_is_a_line_in_the_order_of_names(sets: Sets, tmp_path: Path) -> None:
    recorded_failures.write(tmp_path / "sets.json", sets)
    assert recorded_failures.SETS.read_text() == (tmp_path / "sets.json").read_text()
    lines = recorded_failures.SETS.read_text().splitlines()[1:-1]
    assert [json.loads(f"{{{line.rstrip(',')}}}") for line in lines] == [{name: sets[name]} for name in sorted(sets)]
