"""Hostile targets: each clause gets its verdict in bounded time, and no clause changes the verdict of another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from conformance.errors import UsageError
from conformance.isolation.monkeypatches import PRISTINE
from conformance.run import execution, supervisor
from conformance.run.selection import Selection
from conformance.run.supervisor import LEAST, SILENCE, memory_for
from tests.support.commands import TARGETS, judged, loraspec, run_target


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {clause["id"]: clause["status"] for clause in report["clauses"]}


def message(report: dict[str, Any], clause: str) -> str:
    return next(str(found["message"]) for found in report["clauses"] if found["id"] == clause)


def judge(target: str, folder: Path, clauses: str, *options: str) -> tuple[str, dict[str, Any]]:
    """Run the command on one hostile target; return its output and the report."""
    options = ("--clause", clauses, "--dtype", "float32", "-n", "0", *options)
    ended, report = run_target(f"hostile.{target}", folder, *options)
    assert (ended.returncode, report["verdict"]) == (1, "fail")
    assert not report["errors"]
    return ended.stdout + ended.stderr, report


@pytest.mark.long
def test_what_stalls_is_ended_whatever_holds_it(tmp_path: Path) -> None:
    clauses = "LIN-DROP-ALL,LIN-DROP-BWD,LIN-FWD,LIN-MEM-INPUTS"
    # with two workers the two hangs waste less than what makes a run skip trials, even on a busy machine
    _, report = judge("stalling", tmp_path, clauses, "--timeout", "10", "-n", "2")
    assert statuses(report) == {
        "LIN-FWD": "pass",
        "LIN-MEM-INPUTS": "pass",
        "LIN-DROP-BWD": "crashed",
        "LIN-DROP-ALL": "crashed",
    }
    for clause, place in (("LIN-DROP-ALL", "in search_for_ever"), ("LIN-DROP-BWD", "in cut_the_timer_off")):
        assert re.match(r"did not finish within \d+ s.*\nat ", message(report, clause))
        assert place in message(report, clause)
    assert report["seconds"] < execution.IMPORT_TIMEOUT + SILENCE  # the supervisor's own timeout


def test_a_target_that_never_answers_times_out_in_few_trials(tmp_path: Path) -> None:
    options = ("--group", "linear", "--dtype", "float32", "-n", "2", "--timeout", "2")
    ended, report = run_target("hostile.sleeping", tmp_path, *options)
    assert (ended.returncode, report["verdict"]) == (1, "fail")
    assert set(statuses(report).values()) == {"crashed", "not_claimed"}
    said = [str(found["message"]) for found in report["clauses"] if found["status"] == "crashed"]
    # on a busy machine a process may be killed before it has written the stack that stands on the second line
    waited = [text for text in said if text.splitlines()[0] == "did not finish within 2 s"]
    assert 2 <= len(waited) <= 6
    rest = {text for text in said if text not in waited}
    assert [text for text in rest if not re.match(r"not tried: .* of lora_linear among them", text)] == []


def test_a_trial_that_takes_too_much_memory_is_killed(tmp_path: Path) -> None:
    clauses = "LIN-DROP-EVAL,LIN-DROP-ALL,LIN-FWD"
    _, report = judge("hoarding", tmp_path, clauses, "--memory", "1.5")
    assert statuses(report) == {"LIN-FWD": "pass", "LIN-DROP-ALL": "fail", "LIN-DROP-EVAL": "crashed"}
    seen = message(report, "LIN-DROP-EVAL")
    assert seen.startswith("took ")
    assert "GiB of memory: the limit is 1.5 GiB\nat " in seen
    assert "in hoard" in seen
    assert "allocate" in message(report, "LIN-DROP-ALL")


def test_the_default_memory_limit_is_a_share_of_the_available_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_for(1) >= LEAST
    monkeypatch.setattr(supervisor, "_available", lambda: 40 * 2**30)
    assert [memory_for(count) / 2**30 for count in (1, 4, 100)] == [36, 9, LEAST / 2**30]


def test_exits_without_an_error_are_failures(tmp_path: Path) -> None:
    _, report = judge("leaving", tmp_path, "LIN-DROP-EVAL,LIN-DROP-ALL,LIN-FWD")
    assert statuses(report) == {"LIN-FWD": "pass", "LIN-DROP-ALL": "fail", "LIN-DROP-EVAL": "crashed"}
    assert message(report, "LIN-DROP-ALL").startswith("the forward pass raised SystemExit")
    assert message(report, "LIN-DROP-EVAL").startswith("ended the process")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("exits", "raised on import: SystemExit: 0"),
        ("ends again", "imports once but not in the processes that run trials: the process that imported it ended"),
    ],
)
def test_an_import_that_ends_the_process_is_a_usage_error(
    how: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTILE_IMPORT", how)
    monkeypatch.setenv("HOSTILE_MARK", str(tmp_path / "mark"))
    options = ("--clause", "LIN-FWD", "--dtype", "float32", "-n", "1", "--report-dir", str(tmp_path))
    ended = loraspec("run", "hostile.importing", "--profile", "quick", *options)
    assert ended.returncode == 2
    assert said in ended.stderr


def test_an_import_that_hangs_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTILE_IMPORT", "hangs")
    monkeypatch.chdir(TARGETS)
    monkeypatch.syspath_prepend(str(TARGETS))
    selection = Selection("hostile.importing")
    with pytest.raises(UsageError, match="does not import within 5 s"), execution.Run(selection, import_timeout=5):
        pass


def test_the_run_does_not_wait_for_the_targets_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTILE_IMPORT", "leaves a thread")
    options = ("--clause", "LIN-FWD", "--dtype", "float32", "-n", "0")
    ended, report = run_target("hostile.importing", tmp_path, *options)
    assert (ended.returncode, statuses(report)) == (0, {"LIN-FWD": "pass"})
    assert report["seconds"] < execution.IMPORT_TIMEOUT + SILENCE


def test_a_targets_output_stays_out_of_report_and_terminal(tmp_path: Path) -> None:
    printed, report = judge("printing", tmp_path, "LIN-DROP-EVAL,LIN-FWD,LIN-BWD-DA")
    assert statuses(report) == {"LIN-FWD": "pass", "LIN-BWD-DA": "pass", "LIN-DROP-EVAL": "fail"}
    assert message(report, "LIN-DROP-EVAL").startswith("the forward pass raised ValueError: noise")
    assert len(printed) < 8000
    # the target prints megabytes; the reproducers are some tens of kB, and the journal and the page hold them too
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 300_000


def test_monkeypatches_of_the_target_do_not_deceive_the_judge(tmp_path: Path) -> None:
    clauses = "LIN-FWD-SCALE,LIN-BWD-DX,LIN-MEM-INPUTS,LIN-SIDE-GLOBAL,LIN-SIDE-PATCH"
    _, report = judge("patching", tmp_path, clauses)
    assert statuses(report) == {**dict.fromkeys(clauses.split(","), "fail"), "LIN-MEM-INPUTS": "pass"}
    assert "the adapter term is" in message(report, "LIN-FWD-SCALE")
    for name in ("torch.allclose", "torch.Tensor.__eq__", "numpy.abs", "conformance.judgement.judge.compare"):
        assert name in message(report, "LIN-SIDE-PATCH")
    for setting in ("default dtype from torch.float32 to torch.float64", "grad mode", "NumPy's error handling"):
        assert setting in message(report, "LIN-SIDE-GLOBAL")


@pytest.mark.parametrize(
    ("cheat", "clause", "said"),
    [
        ("address", "LIN-MEM-REFILL", "backward through the graph a second time"),
        ("size", "LIN-FWD", "worst    y"),
        ("turn", "LIN-FWD", "worst    y"),
        ("inputs", "LIN-FWD", "worst    y"),
        ("buffer", "LIN-MEM-LATER", "worst    y"),
    ],
)
def test_who_is_right_only_at_first_sight_fails(cheat: str, clause: str, said: str) -> None:
    # in this process, since nothing of it is about processes
    report = judged(f"hostile.cheating:{cheat}", clauses=(clause, "LIN-SHAPES"), dtypes=("float32",)).to_json()
    assert statuses(report)[clause] == "fail"
    assert said in message(report, clause)
    assert set(statuses(report)) == {clause, "LIN-SHAPES"}


def test_monkeypatches_by_torch_are_not_blamed_on_the_target() -> None:
    from torch._dynamo.mutation_guard import install_generation_tagging_init

    PRISTINE.begin()
    with PRISTINE.suspended():
        install_generation_tagging_init()  # torch.compile calls it for the first module it compiles
    assert PRISTINE.names() == []
    PRISTINE.begin()
