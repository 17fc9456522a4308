"""How long a trial may take, and when it is not tried any more."""

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


def test_the_first_trial_that_does_not_end_costs_the_full_limit_and_those_after_it_what_they_are_expected_to() -> None:
    found = of()
    assert (found.seconds(A), found.said(60.0)) == (60.0, "")
    found.died(A, late=None)  # it crashed: that says nothing of time
    assert found.seconds(A) == 60.0
    found.died(A, late=60.0)
    assert found.seconds(A) == SLACK * 0.5
    assert found.seconds(B) == LEAST
    assert found.said(LEAST) == " (the limit was 60 s until 1 trial did not end)"


def test_a_target_that_is_slow_is_given_as_much_more() -> None:
    found = of()
    found.finished(A, 1.5)  # three times what is expected
    found.died(B, late=60.0)
    assert found.seconds(A) == SLACK * 3 * 0.5
    found.finished(A, 100.0)
    assert found.seconds(A) == 60.0  # and never more than the full limit


def test_a_fast_target_is_not_given_less() -> None:
    found = of()
    found.finished(A, 0.001)
    found.died(B, late=60.0)
    assert found.seconds(A) == SLACK * 0.5


def test_what_is_expected_grows_with_the_load_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limits, "busy", lambda: 3.0)
    found = of()
    assert found.seconds(B) == 60.0  # the full limit is given
    found.died(B, late=60.0)
    assert found.seconds(B) == 3 * LEAST


@pytest.mark.parametrize(("load", "times"), [(0.1, 1), (2.0, 1), (6.4, 3)])
def test_a_machine_is_as_busy_as_processes_share_a_processor(
    load: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(time_limits.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(time_limits.os, "cpu_count", lambda: 2)
    assert time_limits.busy() == times


def test_after_much_waiting_a_subject_most_of_whose_trials_are_late_is_not_tried() -> None:
    found = of()
    for n in range(1, 8):
        assert found.hopeless(("LIN-BIAS", "f", "float64")) is None
        found.died(A, late=PATIENT * 60.0 * 2 / 6)
        assert n <= 6 or found.hopeless(("LIN-BIAS", "f", "float64"))
    assert found.hopeless(("LIN-BIAS", "f", "float64")) == "not tried: 7 trials did not end in time, 7 of f among them"
    assert found.hopeless(("LIN-BIAS", "g", "float64")) is None
    for _ in range(4):
        found.finished(A, 0.1)  # four that end: seven are not many more
    assert found.hopeless(("LIN-BIAS", "f", "float64")) is None


def test_after_too_much_waiting_no_subject_is_tried_that_was_ever_late() -> None:
    found = of()
    for _ in range(20):
        found.finished(A, 0.1)
    while (wasted := found._wasted) <= IMPATIENT * 60.0 * 2:
        assert found.hopeless(("LIN-BIAS", "f", "float64")) is None
        found.died(A, late=40.0)
    assert wasted == 280.0
    assert "7 of f among them" in (found.hopeless(("LIN-BIAS", "f", "float64")) or "")
    assert found.hopeless(("LIN-BIAS", "g", "float64")) is None


def test_after_many_deaths_trials_like_those_are_not_tried() -> None:
    found = of()
    for n in range(PATIENCE):
        assert found.hopeless(("A-0", "f", "float32")) is None
        found.died((f"A-{n}", "f", "float32"), late=None)
    assert "this clause's among them" in (found.hopeless(("A-0", "f", "float64")) or "")
    assert "several of float32 among them" in (found.hopeless(("B-0", "f", "float32")) or "")
    assert found.hopeless(("B-0", "f", "float64")) is None
