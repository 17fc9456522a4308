"""The cost of a run: per million cases, and estimated for another profile on several machines."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from conformance import cli
from conformance.errors import UsageError
from conformance.report.report import Report, ReportedResult
from conformance.run import cost
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from tests.support.matrices import a_clause, a_result, report_of


def result(dtype: str, examples: int, seconds: float, **others: Any) -> ReportedResult:
    """One trial of a report."""
    return a_result(**({"subject": "lora_linear", "dtype": dtype, "examples": examples, "seconds": seconds} | others))


def a_report(**others: Any) -> Report:
    """A report of profile default: two clauses of linear, one of merge, and one that judged nothing."""
    return report_of(
        a_clause("LIN-FWD", "linear", result("float32", 30, 3.0), result("bfloat16", 20, 6.0, inconclusive=10)),
        a_clause("LIN-BWD-DB", "linear", result("float32", 6, 1.0, lane="interpreter")),
        a_clause("MRG-WEIGHT", "merge", result("float32", 30, 0.5, subject="LinearLoRA")),
        a_clause("DOR-FWD", "dora", result("float32", 0, 0.0)),
        **others,
    )


def test_the_cost_of_a_group_includes_inconclusive_cases() -> None:
    found = cost.by_group(a_report())
    assert list(found) == [("linear", "cpu"), ("linear", "interpreter"), ("merge", "cpu")]
    assert (found["linear", "cpu"].cases, found["linear", "cpu"].seconds) == (60, 9.0)
    assert found["linear", "cpu"].hours_per_million == pytest.approx(9 / 60 * 1e6 / 3600)


def test_the_estimate_scales_each_trial_by_its_number_of_cases() -> None:
    nightly, default = PROFILES["nightly"], PROFILES["default"]
    clauses = load_all()
    most = nightly.volume + nightly.searches
    slow, fast = (most / default.cases(clauses["LIN-FWD"], "cpu", dtype) for dtype in ("bfloat16", "float32"))
    others = most / default.cases(clauses["MRG-WEIGHT"], "cpu", "float32")
    interpreted = nightly.interpreted / default.cases(clauses["LIN-BWD-DB"], "interpreter")
    plan = cost.fleet(a_report(), "nightly", 1)
    assert plan.whole.cases == 3 * most + nightly.interpreted
    assert plan.whole.seconds == pytest.approx(3.0 * fast + 6.0 * slow + 0.5 * others + interpreted)
    assert plan.longest == plan.whole
    assert plan.trial == (("LIN-FWD", "lora_linear", "bfloat16"), pytest.approx(6 * slow))


def test_the_estimate_uses_a_runs_shards_and_their_longest_trial() -> None:
    whole = cost.fleet(a_report(), "nightly", 1).whole
    each = cost.fleet(a_report(), "nightly", 4)
    assert each.whole.cases == whole.cases
    assert each.whole.seconds == pytest.approx(whole.seconds)
    assert each.longest.seconds == pytest.approx(each.trial[1])
    with pytest.raises(UsageError, match="shard 5/5 is empty: 4 trials are planned"):
        cost.fleet(a_report(), "nightly", 5)


def test_the_command_shows_groups_the_plan_and_the_longest_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(a_report().to_json()))
    assert cli.main(["cost", str(tmp_path), "--shards", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("t, profile default, a processor; times are of one process")
    assert [line.split() for line in said.splitlines() if "merge" in line] == [
        ["merge", "cpu", "30", "0.5", "16.7", "4.63"]
    ]
    assert re.search(r"profile nightly: 3,640 cases, \d+ min of one process; 2 shards: the longest takes", said)
    assert re.search(r"no shard is shorter than its longest trial: LIN-FWD lora_linear bfloat16, \d+ min\n$", said)


def test_a_report_without_cases_or_of_an_unknown_profile_is_refused() -> None:
    with pytest.raises(UsageError, match="the report on t has no judged case: expected one of a run"):
        cost.by_group(a_report(clauses=()))
    with pytest.raises(UsageError, match="the report's profile is 'weekly': expected one of quick, default, nightly"):
        cost.fleet(a_report(profile="weekly"), "nightly", 1)


def test_a_report_kept_without_its_times_is_refused() -> None:
    report = report_of(a_clause("LIN-FWD", "linear", result("float32", 30, 3.0), a_result(seconds=None)))
    with pytest.raises(UsageError, match=r"t has no times: expected the report\.json that a run"):
        cost.by_group(report)


def test_a_clause_that_the_suite_does_not_have_is_refused() -> None:
    report = report_of(a_clause("LIN-GONE", "linear", result("float32", 30, 3.0)))
    with pytest.raises(UsageError, match="a clause LIN-GONE, which this version of the suite does not have"):
        cost.fleet(report, "nightly", 1)


def test_several_reports_or_zero_shards_are_usage_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(a_report().to_json()))
    assert cli.main(["cost", str(tmp_path)]) == 2
    assert "holds 2 reports: expected one" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["cost", str(tmp_path / "a"), "--shards", "0"])
    assert "'0': expected a whole number, at least 1" in capsys.readouterr().err
