"""Causes: failing clauses grouped, and the known defect that fails like each group."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest

from conformance.report import github_actions, report, terminal
from conformance.report.causes import Cause
from conformance.report.diagnosis import causes
from conformance.report.known_defects import TABLE, DefectTable, table, table_of
from conformance.report.report import Report, ReportedClause
from conformance.report.resemblance import resemblance
from tests.support import diagnosis_table, recorded_failures
from tests.support.matrices import a_clause, a_result, report_of
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


def failing(name: str, message: str = "worst y[0]: got 1, want 2", group: str = "linear") -> ReportedClause:
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
        "fails as an implementation that one (twin L-A__one): "
        "100% of its failures occur here, and make up 100% of this cause"
    )


def test_several_defects_need_several_twins() -> None:
    clauses = [*(failing(f"L-{letter}") for letter in "ABCDEF"), passing("L-G")]
    defects = known(one=["L-A", "L-B", "L-E"], two=["L-C", "L-D", "L-F"], three=["L-G", "L-A", "L-C", "L-E"])
    found = [(cause.defect, cause.clauses) for cause in causes(clauses, defects)]
    assert found == [("one", ("L-A", "L-B", "L-E")), ("two", ("L-C", "L-D", "L-F"))]


def test_one_failing_clause_of_several_names_no_defect_without_its_words() -> None:
    found = causes([failing("L-A"), failing("L-B"), passing("L-C")], known(one=["L-A"], two=["L-C", "L-B"]))
    assert [(cause.clause, cause.fits) for cause in found] == [("L-A", False), ("L-B", False)]
    assert found[0].sentence == (
        "fails the same clauses as an implementation that one (twin L-A__one), with another message"
    )


def test_a_message_of_another_kind_speaks_against_a_defect() -> None:
    raised = "building it raised ValueError: the rank is too large"
    clauses = [failing(f"L-{letter}", raised) for letter in "ABC"]
    (found,) = causes(clauses, known(told=True, one=["L-A", "L-B", "L-C"]))
    assert (found.sentence, found.follows) == ("no known defect fails like this", ("L-B", "L-C"))


def test_what_several_failures_of_a_defect_say_belongs_to_it() -> None:
    scaled = "worst y[0]: got 1, want 2\npattern  all; the adapter term is {} times what it should be"
    names = [f"L-{letter}" for letter in "ABCDE"]
    clauses = [failing("L-A"), *(failing(name, scaled.format(i / 4)) for i, name in enumerate(names[1:]))]
    (found,) = causes(clauses, known(one=names[:4]))
    assert (found.defect, found.follows) == ("one", tuple(names[1:]))
    alone, other = causes([*clauses[:3], clauses[4]], known(one=names[:3]))
    assert (alone.follows, other.clause) == (("L-B", "L-C"), "L-E")


@pytest.mark.parametrize(
    ("says", "text", "expected"),
    [
        ("constant ratio 0.5", "worst y[0]: got 1\npattern  all; constant ratio 0.5", "SAID"),
        ("constant ratio 0.5", "worst y[0]: got 1\npattern  all; constant ratio 0.51", "SAID_BUT_FOR_NUMBERS"),
        ("constant ratio 0.5", "worst y[0]: got 1\npattern  all; zeros", "UNSAID"),
        ("constant ratio 0.5", "building it raised ValueError", "CONTRADICTED"),
        ("requires grad", "worst y[0]: got 1\npattern  all; zeros", "CONTRADICTED"),
        ("requires grad", "W requires grad: expected it frozen", "SAID"),
        ("requires grad", "W has no gradient", "UNSAID"),
        ("worst", "worst y[0]: got 1", "UNKNOWN"),
        ("error ÷ budget", "worst y[0]: got 1     equality required", "UNKNOWN"),
        ("worst", "building it raised ValueError", "CONTRADICTED"),
        ("dtype", "worst y[0]: got 1", "CONTRADICTED"),
        ("anything", "", "UNKNOWN"),
    ],
)
def test_words_of_a_defect_are_compared_with_what_was_seen(says: str, text: str, expected: str) -> None:
    assert resemblance(says, [text] * bool(text)).name == expected


def test_a_defect_whose_own_clause_passes_is_no_cause() -> None:
    found, *rest = causes([passing("L-A"), failing("L-B"), failing("L-C")], known(one=["L-A", "L-B", "L-C"]))
    assert [found, *rest] == [Cause("L-B"), Cause("L-C")]
    assert found.sentence == "no known defect fails like this"


def test_what_a_defect_predicts_and_passes_counts_against_it() -> None:
    clauses = [failing("L-A"), *map(passing, ("L-B", "L-C", "L-D"))]
    assert causes(clauses, known(one=["L-A", "L-B", "L-C", "L-D"])) == (Cause("L-A"),)
    assert causes(clauses[:2], known(one=["L-A", "L-B"], other=["L-A"]))[0].defect == "other"


def test_a_defect_most_of_whose_clauses_pass_is_no_cause_however_rare_those_that_fail_are() -> None:
    common = [f"L-P{i}" for i in range(3)]
    table = known(one=["L-A", "L-B", *common], **{f"other{i}": ["L-Q", *common] for i in range(50)})
    (found, _) = causes([failing("L-A"), failing("L-B"), *map(passing, common)], table)
    assert not found.fits


def test_what_mostly_fails_beside_a_failure_follows_from_it() -> None:
    pairs = {f"one{i}": [f"L-{i}", "L-A", "L-B"] for i in range(3)} | {
        f"two{i}": [f"M-{i}", "L-A", "L-C"] for i in range(2)
    }
    clauses = [*map(failing, ("L-A", "L-B", "L-C")), *(passing(names[0]) for names in pairs.values())]
    assert causes(clauses, known(**pairs)) == (Cause("L-A", ("L-B",)), Cause("L-C"))


def test_the_pattern_chooses_between_defects_that_fail_the_same_clauses() -> None:
    defects = known(told=True, one=["L-A"], other=["L-A"])
    for name in ("one", "other"):
        (found,) = causes([failing("L-A", f"worst …\npattern  pattern of {name}")], defects)
        assert found.defect == name
    # one clause whose message contradicts the twin's is no evidence for it
    (found,) = causes([failing("L-A", "pattern  the other way")], defects)
    assert (found.fits, found.twin) == (False, "L-A__other")
    assert found.sentence == (
        "fails the same clauses as an implementation that other (twin L-A__other), with another message"
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
    beside = known(**{f"one{i}": [f"L-{i}", "L-A", "L-B"] for i in range(3)})
    assert causes([stale, failing("L-B")], beside) == (Cause("L-A"), Cause("L-B"))


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
    name = "LosesTheBaseInDX"
    of_class = [one for one in table().defects if any(twin.endswith(f"__{name}") for twin in one.twins)]
    assert len(of_class) > 1
    assert len(table().without(name).defects) == len(table().defects) - len(of_class)


def test_the_console_shows_each_cause_once_and_counts_causes(capsys: pytest.CaptureFixture[str]) -> None:
    alike = [failing(f"X-{i}", "the call raised AttributeError: no lora_A") for i in range(48)]
    apart = [failing(f"Y-{i}", f"the call raised AttributeError: no field_{'abcdefghijk'[i]}") for i in range(11)]
    shown(alike + apart)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("FAIL X") for line in lines) == 1
    assert "follows  X-1, X-2, X-3, X-4, X-5 and 42 more (47 clauses)" in lines
    assert sum(line.startswith("cause    ") for line in lines) == terminal.IN_FULL
    assert any(line.startswith("2 more causes, in full in ") for line in lines)


def test_the_console_names_the_cause_before_the_case(capsys: pytest.CaptureFixture[str]) -> None:
    about = json.loads(TABLE.read_text())["LIN-BWD-DX__LosesTheBaseInDX"]
    shown([failing(name, about["says"]) for name in about["fails"]])
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("FAIL LIN-BWD-DX "))
    assert lines[first + 1].startswith(
        "cause    fails as an implementation that loses the base in dX (twin LIN-BWD-DX__"
    )
    assert lines[first + 2].startswith("follows  LIN-")
    assert lines[first + 3].startswith("target   ")


def test_the_summary_of_github_folds_what_follows() -> None:
    about = json.loads(TABLE.read_text())["LIN-BWD-DX__LosesTheBaseInDX"]
    text = github_actions.summary(reported([failing(name, about["says"]) for name in about["fails"]]))
    listed = text[text.index("- **") :].splitlines()
    assert listed[0].startswith("- **LIN-BWD-DX** (MUST) fail: ")
    assert listed[1].startswith("  - fails as an implementation that loses the base in dX")
    assert listed[2].startswith(f"  - <details><summary>follows: {len(about['fails']) - 1} clauses</summary>LIN-")
    assert text.count("- **") == 1


def test_the_report_has_its_causes_and_reads_them_again() -> None:
    found = dataclasses.replace(
        reported([failing("L-A")]), causes=(Cause("L-A", ("L-B",), True, "one", "L-A__one", 1.0, 0.5),)
    )
    written = json.loads(json.dumps(found.to_json()))
    jsonschema.validate(written, json.loads(report.SCHEMA.read_text()))
    assert Report.from_json(written) == found
    del written["causes"]
    assert Report.from_json(written).causes == ()


def reported(clauses: list[ReportedClause]) -> Report:
    """A report of these clauses, kept without causes."""
    versions = {"python": "3", "loraspec": "0", "torch": "2", "triton": None}
    return report_of(*clauses, versions=versions, verdict="fail", target_name="t", seed=0)


def shown(clauses: list[ReportedClause]) -> None:
    """Print the report of these clauses."""
    terminal.show(reported(clauses), Path("nowhere"))
