"""The time limit of a trial, and when the run stops trying a target's trials."""

from __future__ import annotations

import pytest

from conformance.report.trial_keys import Key
from conformance.run import time_limits
from conformance.run.time_limits import IMPATIENT, LEAST, PATIENCE, PATIENT, SLACK, Limits

A: Key = ("LIN-FWD", "f", "float32")
B: Key = ("LIN-BWD-DX", "g", "float32")
EXPECTED = {A: 0.5, B: 0.01}


@pytest.fixture(autouse=True)
def a_quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limits, "busy", lambda: 1.0)


def of(most: float = 60.0, workers: int = 2) -> Limits:
    return Limits(most, workers, EXPECTED.__getitem__)


def test_after_one_timeout_later_trials_get_a_limit_from_their_expected_time() -> None:
    found = of()
    assert (found.seconds(A), found.said(60.0)) == (60.0, "")
    found.died(A, late=None)  # a crash, not a timeout: it does not change the limit
    assert found.seconds(A) == 60.0
    found.died(A, late=60.0)
    assert found.seconds(A) == SLACK * 0.5
    assert found.seconds(B) == LEAST
    assert found.said(LEAST) == " (the limit was 60 s until 1 trial did not end)"


def test_a_slow_target_gets_proportionally_longer_limits() -> None:
    found = of()
    found.finished(A, 1.5)  # three times the expected time
    found.died(B, late=60.0)
    assert found.seconds(A) == SLACK * 3 * 0.5
    found.finished(A, 100.0)
    assert found.seconds(A) == 60.0  # never more than the full limit


def test_a_fast_target_does_not_get_shorter_limits() -> None:
    found = of()
    found.finished(A, 0.001)
    found.died(B, late=60.0)
    assert found.seconds(A) == SLACK * 0.5


def test_limits_grow_with_the_load_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limits, "busy", lambda: 3.0)
    found = of()
    assert found.seconds(B) == 60.0  # the full limit
    found.died(B, late=60.0)
    assert found.seconds(B) == 3 * LEAST


@pytest.mark.parametrize(("load", "times"), [(0.1, 1), (2.0, 1), (6.4, 3)])
def test_the_load_factor_is_the_load_average_per_core(load: float, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(time_limits.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(time_limits.os, "cpu_count", lambda: 2)
    assert time_limits.busy() == times


def test_after_much_waiting_a_subject_with_mostly_timeouts_is_not_tried() -> None:
    found = of()
    for n in range(1, 8):
        assert found.hopeless(("LIN-BIAS", "f", "float64")) is None
        found.died(A, late=PATIENT * 60.0 * 2 / 6)
        assert n <= 6 or found.hopeless(("LIN-BIAS", "f", "float64"))
    assert found.hopeless(("LIN-BIAS", "f", "float64")) == "not tried: 7 trials did not end in time, 7 of f among them"
    assert found.hopeless(("LIN-BIAS", "g", "float64")) is None
    for _ in range(4):
        found.finished(A, 0.1)  # with four finished trials the seven late ones are no clear majority
    assert found.hopeless(("LIN-BIAS", "f", "float64")) is None


def test_after_too_much_waiting_a_subject_with_any_timeout_is_not_tried() -> None:
    found = of()
    for _ in range(20):
        found.finished(A, 0.1)
    while (wasted := found._wasted) <= IMPATIENT * 60.0 * 2:
        assert found.hopeless(("LIN-BIAS", "f", "float64")) is None
        found.died(A, late=40.0)
    assert wasted == 280.0
    assert "7 of f among them" in (found.hopeless(("LIN-BIAS", "f", "float64")) or "")
    assert found.hopeless(("LIN-BIAS", "g", "float64")) is None


def test_after_many_deaths_trials_of_that_clause_or_dtype_are_not_tried() -> None:
    found = of()
    for n in range(PATIENCE):
        assert found.hopeless(("A-0", "f", "float32")) is None
        found.died((f"A-{n}", "f", "float32"), late=None)
    assert "this clause's among them" in (found.hopeless(("A-0", "f", "float64")) or "")
    assert "several of float32 among them" in (found.hopeless(("B-0", "f", "float32")) or "")
    assert found.hopeless(("B-0", "f", "float64")) is None
