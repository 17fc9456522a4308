"""Commands of a run in parts: merged shards, and a resumed run, give the report of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from conformance.report.report import Report
from conformance.report.verdict import exit_code
from conformance.run.journal import NAME, read
from tests.support.commands import PATIENCE, TARGETS, loraspec, pytested, report_in, run_target, without_times
from tests.test_report import SCHEMA

CHOSEN = ("--clause", "LIN-FWD,LIN-BWD-DB,LIN-MEM-INPUTS", "--dtype", "float32,bfloat16")


def files(folder: Path) -> dict[str, str]:
    """The text of each reproducer in a report folder."""
    return {path.name: path.read_text() for path in folder.glob("repro_*.py")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    ended, found = run_target("sluggish", folder, *CHOSEN, "-n", "0")
    assert (ended.returncode, found["verdict"], found["shard"]) == (1, "fail", None)
    assert {c["status"] for c in found["clauses"]} == {"pass", "fail"}
    return folder


def test_shards_of_the_command_and_the_plugin_merge_into_the_whole_report(whole: Path, tmp_path: Path) -> None:
    one, two, into = (tmp_path / name for name in ("one", "two", "all"))
    ended, found = run_target("sluggish", one, *CHOSEN, "--shard", "1/2", "-n", "1")
    jsonschema.validate(found, SCHEMA)
    assert (found["shard"], ended.returncode) == ("1/2", exit_code(Report.from_json(found)))
    assert "sluggish, shard 1/2: " in ended.stdout
    options = ("--target", "sluggish", "--profile", "quick", *CHOSEN, "--shard", "2/2", "--report-dir", str(two))
    other = pytested("-q", "-p", "no:cacheprovider", "--pyargs", "conformance.clauses.linear_and_layer", *options)
    assert report_in(two)["shard"] == "2/2", other.stdout
    assert other.returncode == exit_code(Report.from_json(report_in(two)))
    merged = loraspec("merge", str(two), str(one), "--report-dir", str(into))
    assert merged.returncode == 1, merged.stderr
    assert without_times(report_in(into)) == without_times(report_in(whole))
    assert files(into) == files(whole)
    assert (into / "junit.xml").exists()


def test_an_interrupted_or_killed_run_resumes(whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "conformance", "run", "sluggish", "--profile", "quick", *CHOSEN, "-n", "0"]
    command += ["--report-dir", str(tmp_path), "--resume"]
    for number, (last, code) in enumerate(((signal.SIGINT, 130), (signal.SIGKILL, -9)), start=1):
        slowly = {**os.environ, "SLUGGISH": "0.05"}  # slow enough to be interrupted on a busy machine
        process = subprocess.Popen(
            command,
            cwd=TARGETS,
            env=slowly,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_interrupts,  # noqa: PLW1509  (this process runs no other thread)
        )
        while process.poll() is None and results(tmp_path) < number:
            time.sleep(0.02)
        process.send_signal(last)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, said
        assert not (tmp_path / "report.json").exists()
        assert ("interrupted; the same command with --resume continues" in said) == (code == 130)
    lines = (tmp_path / NAME).read_text().splitlines(keepends=True)  # the kill may truncate the last line
    kept = [line.rstrip("\n") for line in lines if line.endswith("\n") and "result" in json.loads(line)]
    with (tmp_path / NAME).open("a") as journal:
        journal.write(kept[0][:50])
    ended, found = run_target("sluggish", tmp_path, *CHOSEN, "-n", "0", "--resume")
    assert ended.returncode == 1
    assert f"resuming: {len(kept)} trials have their result, {6 - len(kept)} are left" in ended.stderr
    assert without_times(found) == without_times(report_in(whole))
    assert files(tmp_path) == files(whole)
    written = [json.loads(line) for line in (tmp_path / NAME).read_text().splitlines()]
    assert [json.dumps(event) for event in written if "result" in event][: len(kept)] == kept
    assert sum("result" in event for event in written) == 6

    again, same = run_target("sluggish", tmp_path, *CHOSEN, "-n", "0", "--resume")
    assert (again.returncode, without_times(same)) == (1, without_times(found))
    assert "nothing is left to do: all 6 trials have their result" in again.stderr
    other = loraspec(
        "run", "sluggish", "--profile", "quick", *CHOSEN, "--seed", "1", "--resume", "--report-dir", str(tmp_path)
    )
    assert other.returncode == 2
    assert "seed: 0 in the journal, 1 now" in other.stderr


def heed_interrupts() -> None:
    """Restore SIGINT: a shell makes background jobs ignore it, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def results(folder: Path) -> int:
    """The number of results in a journal."""
    recorded = read(folder)
    return 0 if recorded is None else len(recorded.outcome.results)
