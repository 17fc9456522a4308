"""The report: statuses, verdict, exit code, schema, and files that are replaced atomically."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest

import reference
from conformance.judgement.result import Result
from conformance.report import files, junit, report, terminal
from conformance.report.assemble import assemble
from conformance.report.outcome import Outcome
from conformance.report.plan import Plan, PlannedClause, PlannedGroup, PlannedTrial, TargetInfo
from conformance.report.report import Report, ReportedGroup, SuiteFailure
from conformance.report.trial_keys import Key
from conformance.report.verdict import exit_code
from conformance.run import plan as planning
from conformance.run.selection import Selection
from conformance.specification.clause import load_all
from conformance.target.installed_packages import uninstalled
from conformance.target.target import Target
from tests.support.commands import judged

SCHEMA = json.loads(report.SCHEMA.read_text())
DTYPES = ("float32", "bfloat16")


def a_plan(**deviations: str) -> Plan:
    """Clauses A (MUST), B (SHOULD) of group linear with two trials each, and C of a group not claimed."""

    def clause(name: str, level: str, group: str = "linear", dtypes: tuple[str, ...] = DTYPES) -> PlannedClause:
        trials = tuple(PlannedTrial(Key(name, "f", dtype), "cpu", declared=True, cases=6) for dtype in dtypes)
        missing = () if trials else ("LinearLoRA",)
        return PlannedClause(id=name, group=group, level=level, sentence=name, missing=missing, trials=trials)

    return Plan(
        spec="1.0",
        target=TargetInfo("t", "t", None, "0"),
        versions={"python": "3", "loraspec": "0", "torch": "2", "triton": None},
        device="cpu",
        device_name="a processor",
        groups={"linear": PlannedGroup(claimed=True), "layer": PlannedGroup(claimed=False, missing=("LinearLoRA",))},
        clauses=(clause("A", "MUST"), clause("B", "SHOULD"), clause("C", "MUST", "layer", ())),
        deviations=deviations,
    )


def plan_of(trials: dict[str, tuple[PlannedTrial, ...]]) -> Plan:
    """A plan of MUST clauses of group linear, each with its trials."""
    clauses = (
        PlannedClause(id=name, group="linear", level="MUST", sentence=name, trials=of_clause)
        for name, of_clause in trials.items()
    )
    return dataclasses.replace(a_plan(), clauses=tuple(clauses))


def assembled(statuses: dict[str, tuple[str, str]], *, dtypes: tuple[str, ...] = (), **deviations: str) -> Report:
    """The report where each clause's two trials ended like this."""
    outcome = Outcome()
    for clause, pair in statuses.items():
        for dtype, status in zip(DTYPES, pair, strict=True):
            message = None if status == "pass" else f"{clause} {dtype} {status}"
            outcome.add(Result(clause, "f", dtype, status=status, worst_ratio=0.5, examples=6, message=message))
    found = files.finish(assemble(a_plan(**deviations), outcome, Selection("t", dtypes=dtypes).settings), 1.0)
    jsonschema.validate(found.to_json(), SCHEMA)
    assert Report.from_json(json.loads(json.dumps(found.to_json()))) == found
    terminal.show(found, Path("nowhere"))
    junit.document(found)
    return found


@pytest.mark.parametrize(
    ("pair", "status", "code"),
    [
        (("pass", "pass"), "pass", 0),
        (("pass", "unsupported"), "pass", 0),
        (("unsupported", "unsupported"), "unsupported", 0),
        (("pass", "fail"), "fail", 1),
        (("inconclusive", "pass"), "inconclusive", 1),
        (("fail", "inconclusive"), "fail", 1),
        (("fail", "crashed"), "crashed", 1),
    ],
)
def test_a_clause_is_as_bad_as_its_worst_trial(pair: tuple[str, str], status: str, code: int) -> None:
    found = assembled({"A": pair, "B": ("pass", "pass")})
    first = found.clauses[0]
    assert (first.status, exit_code(found)) == (status, code)
    assert found.verdict == ("pass", "fail")[code]
    assert found.groups["linear"].counts.get(status)
    if code:
        assert first.message == f"A {DTYPES[pair.index(status)]} {status}"


def test_a_failing_should_is_listed_but_does_not_gate(capsys: pytest.CaptureFixture[str]) -> None:
    found = assembled({"A": ("pass", "pass"), "B": ("pass", "fail")})
    assert (exit_code(found), found.verdict, found.groups["linear"].status) == (
        0,
        "pass",
        "pass",
    )
    out = capsys.readouterr().out
    assert "FAIL (SHOULD) B" in out
    assert "1 fail (1 of them SHOULD)" in out


def test_an_unclaimed_clause_never_counts_as_a_pass(capsys: pytest.CaptureFixture[str]) -> None:
    found = assembled({"A": ("pass", "pass"), "B": ("pass", "pass")})
    clause = found.clauses[2]
    assert (clause.status, clause.message) == ("not_claimed", "the target has no LinearLoRA")
    assert found.groups["layer"].status == "not_claimed"
    assert "layer     not claimed: lacks LinearLoRA" in capsys.readouterr().out


def test_a_declared_deviation_is_an_expected_failure(capsys: pytest.CaptureFixture[str]) -> None:
    found = assembled({"A": ("fail", "pass"), "B": ("pass", "pass")}, A="issue 7")
    assert (found.clauses[0].status, exit_code(found)) == ("deviation", 0)
    assert "DEVIATION A: issue 7" in capsys.readouterr().out


def test_a_stale_deviation_fails_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = assembled({"A": ("pass", "pass"), "B": ("pass", "pass")}, B="issue 7")
    assert (found.clauses[1].status, exit_code(found)) == ("fail", 1)
    assert "declared as a deviation (issue 7) but it no longer fails" in capsys.readouterr().out
    # a run in some of the dtypes cannot tell
    narrowed = assembled({"A": ("pass", "pass"), "B": ("pass", "pass")}, dtypes=("float32",), B="issue 7")
    assert exit_code(narrowed) == 0


def test_a_trial_without_a_result_is_inconclusive() -> None:
    found = assembled({"B": ("pass", "pass")})
    assert (found.clauses[0].status, exit_code(found)) == ("inconclusive", 1)


def test_a_failure_of_the_suite_is_exit_3() -> None:
    outcome = Outcome(errors=[SuiteFailure("A", "Traceback …")])
    found = assemble(a_plan(), outcome, Selection("t").settings)
    assert (exit_code(found), found.verdict) == (3, "error")


def test_a_shard_does_not_report_stale_deviations() -> None:
    plan = a_plan(A="issue 7")
    outcome = Outcome()
    outcome.add(Result("A", "f", "float32", examples=6))
    only = dataclasses.replace(plan.clauses[0], trials=plan.clauses[0].trials[:1])
    plan = dataclasses.replace(plan, clauses=(only,))
    for shard, code in (("1/2", 0), (None, 1)):
        found = files.finish(assemble(plan, outcome, Selection("t", shard=shard).settings), 1.0)
        jsonschema.validate(found.to_json(), SCHEMA)
        assert (found.shard, exit_code(found)) == (shard, code)


def test_the_reproducer_is_for_the_first_planned_failing_trial() -> None:
    outcome = Outcome()
    for dtype in reversed(DTYPES):
        outcome.add(Result("A", "f", dtype, status="fail"), f"script for {dtype}")
    assert outcome.reproducers(a_plan()) == {"A": "script for float32"}


def test_an_infinite_ratio_is_written_as_valid_json(tmp_path: Path) -> None:
    outcome = Outcome()
    outcome.add(Result("A", "f", "float32", status="fail", worst_ratio=float("inf"), message="NaN"))
    found = assemble(a_plan(), outcome, Selection("t").settings)
    files.write(tmp_path, found, {})
    assert json.loads((tmp_path / "report.json").read_text())["clauses"][0]["worst_ratio"] == 1e308


def test_junit_has_a_case_for_each_trial() -> None:
    found = assembled({"A": ("fail", "pass"), "B": ("pass", "crashed")})
    first, *others = found.clauses
    hostile = dataclasses.replace(first.results[0], message="\x00 <&>")
    first = dataclasses.replace(first, results=(hostile, *first.results[1:]))
    found = dataclasses.replace(found, clauses=(first, *others))
    root = ET.fromstring(junit.document(found))
    assert [(s.get("name"), s.get("tests"), s.get("failures"), s.get("skipped")) for s in root] == [
        ("linear", "4", "1", "1"),
        ("layer", "1", "0", "1"),
    ]


def test_a_failed_write_leaves_the_old_report(tmp_path: Path) -> None:
    found = assembled({"A": ("pass", "pass"), "B": ("pass", "pass")})
    files.write(tmp_path, found, {})
    before = (tmp_path / "report.json").read_text()
    first, *others = found.clauses
    wrong = dataclasses.replace(first, examples=object())  # type: ignore[arg-type]
    broken = dataclasses.replace(found, clauses=(wrong, *others))
    with pytest.raises(TypeError):
        files.write(tmp_path, broken, {})
    assert (tmp_path / "report.json").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["junit.xml", "report.html", "report.json"]


def test_the_reproducer_of_a_now_passing_clause_is_deleted(tmp_path: Path) -> None:
    bad = assembled({"A": ("fail", "pass"), "B": ("pass", "pass")})
    files.write(tmp_path, bad, {"A": "first"})
    assert (tmp_path / "repro_A.py").read_text() == "first"
    files.write(tmp_path, assembled({"A": ("pass", "pass"), "B": ("pass", "pass")}), {})
    assert not (tmp_path / "repro_A.py").exists()


def test_a_real_report_follows_the_schema() -> None:
    found = judged("narrow:refusing", clauses=["LIN-FWD,LAY-FWD"])
    jsonschema.validate(found.to_json(), SCHEMA)
    statuses = {r.dtype: r.status for r in found.clauses[0].results}
    assert statuses == {d: "pass" if d == "float32" else "unsupported" for d in statuses}
    assert found.clauses[1].status == "not_claimed"
    assert found.groups["layer"] == ReportedGroup(
        claimed=False, missing=("LinearLoRA",), status="not_claimed", counts={"not_claimed": 1}
    )


def test_accepting_an_undeclared_dtype_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    found = judged("narrow:accepting", clauses=["LIN-FWD"])
    assert (exit_code(found), found.clauses[0].status) == (0, "pass")
    assert found.clauses[0].message == "accepts float64, which it does not declare"
    terminal.show(found, Path("nowhere"))
    assert "NOTE lora_linear accepts float16, which it does not declare: LIN-FWD" in capsys.readouterr().out


def test_refusing_a_declared_dtype_fails() -> None:
    found = judged("narrow:overdeclaring", clauses=["LIN-FWD"])
    assert exit_code(found) == 1
    message = found.clauses[0].message
    assert message.startswith("the forward pass raised NotImplementedError")
    assert message.endswith("on an input it declares")


@pytest.mark.parametrize(("target", "code", "status"), [("declared", 0, "deviation"), ("stale", 1, "fail")])
def test_a_targets_declared_deviation_passes_and_a_stale_one_fails(target: str, code: int, status: str) -> None:
    found = judged(f"deviating:{target}", clauses=["LIN-FWD-SCALE"])
    assert (exit_code(found), found.clauses[0].status) == (code, status)


def test_a_clause_without_its_package_is_not_claimed_and_names_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else there(name))
    selection = Selection("reference", clauses=("MOD-WEIGHTS", "MOD-ARCH-BWD"))
    plan = planning.plan(selection)
    assert {clause.id: (clause.uninstalled, bool(clause.trials)) for clause in plan.clauses} == {
        "MOD-WEIGHTS": ((), True),
        "MOD-ARCH-BWD": (("transformers>=5",), False),
    }
    found = files.finish(assemble(plan, Outcome(), selection.settings), 0.0)
    assert next(clause.status for clause in found.clauses if clause.id == "MOD-ARCH-BWD") == "not_claimed"
    terminal.show(found, Path("report"))
    assert "NOTE not judged without transformers>=5 (pip install" in capsys.readouterr().out


def test_a_too_old_package_counts_as_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    bwd = load_all()["MOD-ARCH-BWD"]
    assert uninstalled(bwd) == ()
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "4.57.1")
    assert uninstalled(bwd) == ("transformers>=5",)


def test_ranks_are_judged_only_on_the_cpu() -> None:
    clause = load_all()["DIS-DDP"]
    assert Target.of(reference).subjects(clause)
    assert not Target.of(reference, device="cuda").subjects(clause)
    plan = a_plan()
    elsewhere = dataclasses.replace(plan.clauses[2], missing=(), elsewhere=True)
    found = assemble(dataclasses.replace(plan, clauses=(elsewhere,)), Outcome(), Selection("t").settings)
    assert found.clauses[0].message == "judged on the CPU alone, where ranks are processes"
