"""The distribution of trials to workers, and the expected time of a trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conformance.report.trial_keys import Key
from conformance.run import expected_seconds
from conformance.run.worker_pool import Request, Trials

SECONDS: dict[Key, float] = {
    ("FHE-A", "h", "float32"): 9.0,
    ("FHE-B", "h", "float32"): 1.0,
    ("LIN-A", "f", "float32"): 2.0,
    ("LIN-B", "f", "float32"): 5.0,
    ("CFG-A", "c", "any"): 0.1,
}


def dealt() -> Trials:
    return Trials(list(SECONDS), lambda key: key[0][:3], SECONDS.__getitem__)


def test_a_worker_stays_in_its_group_and_takes_the_longest_trial_first() -> None:
    trials = dealt()
    assert [trials.take("LIN", set())[1][0] for _ in range(2)] == ["LIN-B", "LIN-A"]


def test_a_free_worker_takes_the_largest_untaken_group_or_shares_the_largest() -> None:
    trials = dealt()
    assert trials.take("", set()) == ("FHE", ("FHE-A", "h", "float32"))
    assert trials.take("", {"FHE"}) == ("LIN", ("LIN-B", "f", "float32"))
    assert trials.take("", {"FHE", "LIN"}) == ("CFG", ("CFG-A", "c", "any"))
    assert trials.take("CFG", {"FHE", "LIN"}) == ("LIN", ("LIN-A", "f", "float32"))
    assert trials.take("LIN", {"FHE"}) == ("FHE", ("FHE-B", "h", "float32"))
    assert not trials


def test_a_request_is_read_back_as_written(tmp_path: Path) -> None:
    request = Request(list(SECONDS), workers=3, limit=2.5, files="/tmp/x")
    request.write(tmp_path)
    assert Request.read(tmp_path) == request


def a_report(seconds: float) -> dict[str, Any]:
    results = [
        {"lane": "cpu", "examples": 4, "inconclusive": 1, "seconds": seconds},
        {"lane": "cpu", "examples": 10, "inconclusive": 0, "seconds": 1.0},
        {"lane": "interpreter", "examples": 0, "inconclusive": 0, "seconds": 9.0},
    ]
    return {"clauses": [{"id": "LIN-FWD", "results": results}, {"id": "FHE-A", "results": []}]}


def test_seconds_per_case_are_recorded_one_clause_per_line_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "seconds.json"
    path.write_text('{"FHE-A": {"cpu": 2.0}, "LIN-FWD": {"cpu": 7.0}}')
    expected_seconds.record(a_report(12.3), path)
    assert path.read_text() == '{\n"FHE-A": {"cpu": 2.0},\n"LIN-FWD": {"cpu": 2.0}\n}\n'
    # 2.46 and 2.42 s per case round alike, so noise does not change the file
    expected_seconds.record(a_report(12.1), path)
    assert json.loads(path.read_text())["LIN-FWD"] == {"cpu": 2.0}


def test_the_expected_time_is_cases_times_seconds_per_case_or_one_if_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expected_seconds, "_measured", lambda: {"LIN-FWD": {"cpu": 0.5, "interpreter": 2.0}})
    trial = {"subject": "f", "dtype": "float32", "cases": 6}
    plan = {
        "clauses": [
            {"id": "LIN-FWD", "trials": [trial | {"lane": "cpu"}, trial | {"lane": "gpu", "subject": "g"}]},
            {"id": "LIN-NEW", "trials": [trial | {"lane": "cpu"}]},
        ]
    }
    seconds = expected_seconds.of(plan)
    assert seconds(("LIN-FWD", "f", "float32")) == 3.0
    assert seconds(("LIN-FWD", "g", "float32")) == 12.0  # an unmeasured lane counts as the slowest measured lane
    assert seconds(("LIN-NEW", "f", "float32")) == 6.0
