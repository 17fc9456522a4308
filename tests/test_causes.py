"""Causes: failing clauses grouped, and the known defect that fails like each group."""

from __future__ import annotations

import json

import pytest

from conformance.report.causes import Cause
from conformance.report.diagnosis import causes
from conformance.report.known_defects import TABLE, DefectTable, table, table_of
from conformance.report.report import ReportedClause
from tests.support import diagnosis_table, recorded_failures
from tests.support.matrices import a_clause, a_result
from tests.support.twins import REGISTRY


def known(*, told: bool = False, **defects: list[str]) -> DefectTable:
    """A table of defects in group linear: by class name the clauses it fails, its own first.

    Args:
        told: whether the message of the own clause has a pattern that names the class.
    """
    return table_of(
        {
            f"{fails[0]}__{name}": {
                "words": name,
                "says": f"pattern of {name}" if told else "worst",
                "topic": "linear/topic",
                "groups": ["linear"],
                "fails": fails,
            }
            for name, fails in defects.items()
        }
    )


def failing(name: str, message: str = "wrong", group: str = "linear") -> ReportedClause:
    """A failing MUST clause."""
    return a_clause(name, group, a_result(status="fail", message=message), status="fail", message=message)


def passing(name: str) -> ReportedClause:
    return a_clause(name, "linear", a_result())


def test_the_table_is_up_to_date() -> None:
    current = diagnosis_table.document(recorded_failures.sets_in())
    assert TABLE.read_text(encoding="utf-8") == current, "run `python -m tests.support.diagnosis_table`"


def test_the_words_of_a_defect_are_those_of_its_name_or_its_phrase() -> None:
    words = {name.partition("__")[2]: bad.words for name, bad in REGISTRY.items()}
    assert words["LosesTheBaseInDX"] == "loses the base in dX"
    assert words["SquaresInFloat32"] == "squares in float32"
    assert words["TakesAConv1DForALinear"] == "takes a Conv1D for a linear"
    assert words["SumsNoGradientOfA"] == "sums no gradient of A"


def test_a_defect_is_the_cause_of_the_clauses_that_its_twin_fails() -> None:
    found = causes(
        [failing("L-B-X"), failing("L-A"), passing("L-C")], known(one=["L-A", "L-B-X"], other=["L-C", "L-A"])
    )
    assert found == (Cause("L-A", ("L-B-X",), True, "one", "L-A__one", 1.0, 1.0),)
    assert found[0].sentence == (
        "fails as an implementation that one (twin L-A__one): 100% of its clauses fail here, and 100% of these are its"
    )


def test_several_defects_need_several_twins() -> None:
    clauses = [failing("L-A"), failing("L-B"), failing("L-C"), failing("L-D"), passing("L-E")]
    found = causes(clauses, known(one=["L-A", "L-B"], two=["L-C", "L-D"], three=["L-E", "L-A", "L-C"]))
    assert [(cause.defect, cause.clauses) for cause in found] == [("one", ("L-A", "L-B")), ("two", ("L-C", "L-D"))]


def test_a_defect_whose_own_clause_passes_is_no_cause() -> None:
    (found,) = causes([passing("L-A"), failing("L-B")], known(one=["L-A", "L-B"]))
    assert found == Cause("L-B")
    assert found.sentence == "no known defect fails like this"


def test_what_a_defect_predicts_and_passes_counts_against_it() -> None:
    clauses = [failing("L-A"), *map(passing, ("L-B", "L-C", "L-D"))]
    assert causes(clauses, known(one=["L-A", "L-B", "L-C", "L-D"])) == (Cause("L-A"),)
    assert causes(clauses[:2], known(one=["L-A", "L-B"], other=["L-A"]))[0].defect == "other"


def test_the_pattern_chooses_between_defects_that_fail_the_same_clauses() -> None:
    defects = known(told=True, one=["L-A"], other=["L-A"])
    for name in ("one", "other"):
        (found,) = causes([failing("L-A", f"worst …\npattern  pattern of {name}")], defects)
        assert found.defect == name
    # one clause whose message contradicts the twin's is no evidence for it
    (found,) = causes([failing("L-A", "pattern  the other way")], defects)
    assert (found.fits, found.twin) == (False, "L-A__other")
    assert found.sentence == (
        "no known defect fails like this; the nearest is an implementation that other (twin L-A__other)"
    )


def test_failures_that_say_the_same_are_one_cause_without_a_known_defect() -> None:
    clauses = [failing(f"X-{i}", f"call {i} raised AttributeError: no lora_A at line {i}") for i in range(48)]
    (found, other) = causes([*clauses, failing("Y-0-1", "call raised TypeError: odd")], known(one=["L-A"]))
    assert (found.clause, len(found.follows), found.defect) == ("X-0", 47, None)
    assert other == Cause("Y-0-1")


def test_stale_deviations_and_undecided_clauses_are_causes_of_their_own() -> None:
    stale = a_clause("L-A", "linear", a_result(), status="fail", stale=True, message="no longer fails")
    open_one = a_clause("L-B", "linear", a_result(status="inconclusive"), status="inconclusive", message="zeros pass")
    assert causes([stale, open_one], known(one=["L-A", "L-B"])) == (Cause("L-A"), Cause("L-B"))


def test_every_failing_clause_is_in_exactly_one_cause() -> None:
    sets = recorded_failures.sets_in()
    fails = set(sets["LIN-BWD-DX__LosesTheBaseInDX"]) | set(sets["LIN-DROP-MASK__NeverDrops"])
    found = causes([failing(name) for name in sorted(fails)])
    assert sorted(name for cause in found for name in cause.clauses) == sorted(fails)
    assert len(found) <= 3


@pytest.mark.parametrize("twin", ["LIN-BWD-DX__LosesTheBaseInDX", "DORA-MEM-REFILL__KeepsTheNorm"])
def test_a_twin_itself_is_recognised(twin: str) -> None:
    about = json.loads(TABLE.read_text())[twin]
    found = causes([failing(name, about["says"], about["groups"][0]) for name in about["fails"]])
    assert (found[0].twin, found[0].precision, found[0].recall) == (twin, 1.0, 1.0)


def test_the_table_can_leave_a_class_out() -> None:
    assert len(table().without("LosesTheBaseInDX").defects) == len(table().defects) - 2
