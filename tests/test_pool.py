"""The distribution of trials to workers, and the expected time of a trial."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from conformance.report.plan import PlannedTrial
from conformance.report.report import Report
from conformance.report.trial_keys import Key
from conformance.run import expected_seconds
from conformance.run.time_limits import Limits
from conformance.run.worker_pool import Pool, Request, Trials, Worker
from tests.support.matrices import a_clause, a_result, report_of
from tests.test_report import plan_of

SECONDS: dict[Key, float] = {
    Key("FHE-A", "h", "float32"): 9.0,
    Key("FHE-B", "h", "float32"): 1.0,
    Key("LIN-A", "f", "float32"): 2.0,
    Key("LIN-B", "f", "float32"): 5.0,
    Key("CFG-A", "c", "any"): 0.1,
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


def test_a_worker_that_has_ended_leaves_its_next_trial_to_another() -> None:
    pool = object.__new__(Pool)
    pool.trials, pool.workers, pool.limits = dealt(), [], Limits(5.0, 1, SECONDS.__getitem__)
    (reads, inbox), (outbox, hears) = os.pipe(), os.pipe()
    os.close(reads)  # as when the guard has ended the process
    worker = Worker("worker-1", 0, inbox, outbox)
    pool._give(worker)
    worker.close()
    os.close(hears)
    assert worker.trial is None
    assert pool.trials.take("", set()) == ("FHE", ("FHE-A", "h", "float32"))


def test_a_request_is_read_back_as_written(tmp_path: Path) -> None:
    request = Request(list(SECONDS), workers=3, limit=2.5, files="/tmp/x")
    request.write(tmp_path)
    assert Request.read(tmp_path) == request


def recorded(seconds: float) -> Report:
    results = (
        a_result(examples=4, inconclusive=1, seconds=seconds),
        a_result(examples=10, seconds=1.0),
        a_result(lane="interpreter", examples=0, seconds=9.0),
    )
    return report_of(a_clause("LIN-FWD", "linear", *results), a_clause("FHE-A", "fhe"))


def test_seconds_per_case_are_recorded_one_clause_per_line_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "seconds.json"
    path.write_text('{"FHE-A": {"cpu": 2.0}, "LIN-FWD": {"cpu": 7.0}}')
    expected_seconds.record(recorded(12.3), path)
    assert path.read_text() == '{\n"FHE-A": {"cpu": 2.0},\n"LIN-FWD": {"cpu": 2.0}\n}\n'
    expected_seconds.record(recorded(12.1), path)  # 2.46 or 2.42 s a case: noise changes nothing
    assert json.loads(path.read_text())["LIN-FWD"] == {"cpu": 2.0}


def test_the_expected_time_is_cases_times_seconds_per_case_or_one_if_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expected_seconds, "_measured", lambda: {"LIN-FWD": {"cpu": 0.5, "interpreter": 2.0}})
    measured, elsewhere, new = (
        PlannedTrial(Key(clause, subject, "float32"), lane, declared=True, cases=6)
        for clause, subject, lane in (("LIN-FWD", "f", "cpu"), ("LIN-FWD", "g", "gpu"), ("LIN-NEW", "f", "cpu"))
    )
    seconds = expected_seconds.of(plan_of({"LIN-FWD": (measured, elsewhere), "LIN-NEW": (new,)}))
    assert seconds(measured.key) == 3.0
    assert seconds(elsewhere.key) == 12.0  # a lane that was not measured: the slowest that was
    assert seconds(new.key) == 6.0
