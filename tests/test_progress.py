"""The progress of a run: a bar on a terminal, a few lines in a log, and nothing with --json or -q."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conformance import cli
from conformance.errors import UsageError
from conformance.judgement.result import Result
from conformance.report.outcome import Outcome
from conformance.report.plan import Plan, PlannedTrial
from conformance.report.trial_keys import Key
from conformance.run.progress import AFTER, Progress, duration
from conformance.run.run_target import Manner
from tests.support.commands import PATIENCE, TARGETS
from tests.test_report import plan_of

TRIALS = 100


def a_plan(trials: int = TRIALS) -> Plan:
    """A clause with so many trials, of which the first half costs 1 each and the second 3."""
    cases = [1 if number < trials // 2 else 3 for number in range(trials)]
    keys = [Key("LIN-FWD", f"f{number}", "float32") for number in range(trials)]
    listed = (PlannedTrial(key, "cpu", declared=True, cases=count) for key, count in zip(keys, cases, strict=True))
    return plan_of({"LIN-FWD": tuple(listed)})


def after(done: int, failing: int = 0) -> Outcome:
    """The outcome after `done` trials, the first of them failing."""
    outcome = Outcome()
    for number in range(done):
        outcome.add(Result("LIN-FWD", f"f{number}", "float32", status="fail" if number < failing else "pass"))
    return outcome


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The current time in seconds."""
        return self.now


def lines(seconds: float, **options: Any) -> list[str]:
    """The log lines of a run of this many seconds, updated every second."""
    clock, stream = Clock(), io.StringIO()
    progress = Progress(a_plan(), stream=stream, clock=clock, **options)
    for second in range(math.ceil(seconds)):
        clock.now = 1000.0 + second
        progress.update(after(int(TRIALS * second / seconds)))
    progress.stop()
    return stream.getvalue().splitlines()


def test_a_log_gets_occasional_lines_with_the_remaining_time() -> None:
    assert lines(4) == []
    assert lines(14.5) == []
    (only,) = lines(29)
    # half of the trials are done, but the remaining trials cost three times as much
    assert only == "… 51 of 100 trials, 15 s, about 42 s left"


def test_a_long_run_does_not_flood_a_log() -> None:
    assert 15 < len(lines(3600)) < 40


def test_quiet_prints_nothing() -> None:
    assert lines(600, quiet=True) == []


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        """True: the stream claims to be a terminal."""
        return True


def test_a_bar_appears_only_after_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    clock, stream = Clock(), Terminal()
    progress = Progress(a_plan(), stream=stream, clock=clock)
    for second in range(7):
        clock.now = 1000.0 + second
        progress.update(after(second))
        assert ("of 100 trials" in stream.getvalue()) == (second >= AFTER)
    progress.stop()


def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    clock, stream = Clock(), Terminal()
    progress = Progress(a_plan(), stream=stream, clock=clock)
    progress.update(after(0))
    clock.now += 20
    progress.update(after(10))
    assert stream.getvalue() == "… 10 of 100 trials, 20 s, about 6 min left\n"


def test_forced_colours_draw_no_bar_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    (only,) = lines(29)
    assert only.startswith("… 51 of 100 trials")


def test_progress_lines_show_the_title_and_failures() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(a_plan(), title="2 of 3, mine: ", stream=stream, clock=clock)
    clock.now += 20
    progress.update(after(0))
    clock.now += 20
    progress.update(after(50, failing=2))
    assert stream.getvalue().splitlines() == [
        "… 2 of 3, mine: 0 of 100 trials, 20 s",
        "… 2 of 3, mine: 50 of 100 trials, 2 failing, 40 s, about 2 min left",
    ]


def test_resumed_results_do_not_affect_the_estimated_speed() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(a_plan(), stream=stream, clock=clock)
    progress.update(after(40))
    clock.now += 20
    progress.update(after(50))
    assert stream.getvalue() == "… 50 of 100 trials, 20 s, about 5 min left\n"


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0.2, "1 s"), (90, "90 s"), (119, "119 s"), (150, "2 min"), (3599, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_a_duration_in_words(seconds: float, says: str) -> None:
    assert duration(seconds) == says


def on_a_terminal(folder: Path, *options: str, apart: bool = False) -> tuple[int, str, str]:
    """Run longer than 5 s on a pseudoterminal; return exit code, terminal output and, if `apart`, piped stdout."""
    chosen = ("--clause", "LIN-FWD,LIN-BWD-DA", "--dtype", "float32", "--profile", "quick", "-n", "0")
    words = ["run", "sluggish", *chosen, "--report-dir", str(folder), *options]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "SLUGGISH": "0.5"}
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "conformance", *words],
        cwd=TARGETS,
        env=environment,
        stdin=terminal,
        stdout=subprocess.PIPE if apart else terminal,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        try:
            seen = b"".join(iter(lambda: _read(controller), b""))
            out, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
            os.close(controller)
    return process.returncode, seen.decode(), (out or b"").decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError as error:  # EIO: on Linux, the other side has closed
        if error.errno != errno.EIO:
            raise
        return b""


def test_a_terminal_gets_a_bar_that_goes(tmp_path: Path) -> None:
    code, seen, _ = on_a_terminal(tmp_path)
    assert code == 1
    assert "━" in seen
    assert "1 of 2 trials, 1 failing" in seen
    assert " left" in seen
    before, shows_cursor, rest = seen.rpartition("\x1b[?25h")
    assert shows_cursor
    assert "━" in before
    assert "━" not in rest
    assert "\x1b[2K" in rest  # clears the line of the bar
    assert "FAIL sluggish: " in rest


def test_json_is_the_report_and_nothing_else(tmp_path: Path) -> None:
    code, seen, out = on_a_terminal(tmp_path, "--json", apart=True)
    assert (code, seen) == (1, "")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["seconds"] > AFTER


@pytest.mark.parametrize(("options", "quiet"), [((), False), (("-q",), True), (("--json",), True)])
@pytest.mark.parametrize("command", ["run", "matrix"])
def test_json_and_quiet_turn_progress_off(
    command: str, options: tuple[str, ...], quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Manner] = []

    def judge(*arguments: Any) -> dict[str, Any]:
        asked.append(arguments[-1])
        raise UsageError("enough")

    monkeypatch.setattr("conformance.run.run_target.judge", judge)
    assert cli.main([command, "right", *options, "--report-dir", str(tmp_path)]) == 2
    assert [manner.quiet for manner in asked] == [quiet]
    assert [manner.title for manner in asked] == ["1 of 1, right: " if command == "matrix" else ""]
