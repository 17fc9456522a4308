"""The costs of the gate: how they are recorded, sorted into kinds, and written to a file that rarely changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ci import cost_sources, cost_table
from ci.cost_sources import Cost, Costs
from tests.support.commands import python
from tests.support.matrices import a_clause, a_result, report_of

ROOT = Path(__file__).parent.parent
TWIN = "tests/test_known_bad.py::test_a_twin_fails[Twin-a]"
TRIAL = "conformance/clauses/linear_and_layer/forward.py::test_conformance[LIN-FWD-lora_linear-float32]"


def folder_of(path: Path, *entries: dict[str, Any]) -> Path:
    """Fill a folder as the gate does: steps in one file, tests in two."""
    files: dict[str, list[str]] = {"steps": [], "tests-1": [], "tests-2": []}
    for number, entry in enumerate(entries):
        files["steps" if "step" in entry else f"tests-{1 + number % 2}"].append(json.dumps(entry))
    for name, lines in files.items():
        (path / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return path


def one(name: str, cpu: float, wall: float = 0.5) -> dict[str, Any]:
    """The recorded entry of one test."""
    return {"test": name, "cpu": cpu, "wall": wall}


def test_steps_trials_tests_and_twins_are_counted_as_their_own_kind(tmp_path: Path) -> None:
    other = "tests/test_a.py::test_b[tests/c.py::d]"
    lines = [one(TRIAL, 1.0, 4.0), one(TRIAL.replace("32", "64"), 2.0), one(TWIN, 3.0), one(other, 4.0)]
    lines += [one(TWIN.replace("fails", "is_seen"), 0.5), one(TWIN.partition("[")[0], 0.25)]
    lines += [{"step": "types", "cpu": 9.0, "wall": 10.0, "status": 0}]
    found = cost_sources.read([folder_of(tmp_path, *lines)]).kinds
    assert found == {
        "steps": {"types": Cost(9.0, 10.0)},
        "groups": {"linear_and_layer": Cost(3.0, 4.5)},
        "files": {"tests/test_known_bad.py": Cost(3.75, 1.5), "tests/test_a.py": Cost(4.0, 0.5)},
        "trials": {"LIN-FWD-lora_linear-float32": Cost(1.0, 4.0), "LIN-FWD-lora_linear-float64": Cost(2.0, 0.5)},
        "tests": {other: Cost(4.0, 0.5), TWIN.partition("[")[0]: Cost(0.25, 0.5)},
        "twins": {"Twin-a": Cost(3.5, 1.0)},
    }


def test_reports_and_junit_files_are_read_too(tmp_path: Path) -> None:
    times = (("float32", 1.5), ("float64", 2.0))
    results = (a_result(subject="lora_linear", dtype=dtype, seconds=seconds) for dtype, seconds in times)
    report = report_of(a_clause("LIN-FWD", "linear", *results))
    (tmp_path / "report.json").write_text(json.dumps(report.to_json()))
    case = '<testcase classname="tests.test_known_bad" name="test_a_twin_fails[Twin-a]" time="3.25" />'
    (tmp_path / "junit.xml").write_text(f"<testsuites><testsuite>{case}</testsuite></testsuites>")
    found = cost_sources.read([tmp_path, tmp_path / "junit.xml"]).kinds
    assert found["groups"] == {"linear": Cost(3.5, 3.5)}
    assert found["trials"]["LIN-FWD-lora_linear-float64"] == Cost(2.0, 2.0)
    assert found["twins"] == {"Twin-a": Cost(3.25, 3.25)}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no \*\.jsonl, report\.json or junit\.xml"):
        cost_sources.read([tmp_path / "empty"])


def costs_of(kind: str, **seconds: float) -> Costs:
    """Costs of one kind, with equal CPU and wall seconds."""
    found = Costs()
    for name, cpu in seconds.items():
        found.add(kind, name, Cost(cpu, cpu))
    return found


@pytest.mark.parametrize(
    ("kept", "now", "expected"),
    [(10.0, 11.9, 10.0), (10.0, 12.2, 12.0), (10.0, 8.4, 10.0), (10.0, 8.2, 8.2), (0.1, 0.29, 0.1), (0.1, 0.35, 0.35)],
)
def test_a_recorded_figure_stays_until_it_is_off_by_a_fifth(kept: float, now: float, expected: float) -> None:
    entries = cost_table.chosen(costs_of("steps", lint=now), {"steps": {"lint": {"cpu": kept, "wall": now}}})
    assert entries["steps"] == {"lint": {"cpu": expected, "wall": now}}


def test_only_the_costliest_are_listed_and_listed_ones_are_kept_when_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cost_table.DEAREST, "tests", 2)
    kept = {"tests": {"b": {"cpu": 10.0, "wall": 10.0}, "gone": {"cpu": 99.0, "wall": 99.0}}}
    near = cost_table.chosen(costs_of("tests", a=20.0, b=10.0, c=11.5), kept)
    assert list(near["tests"]) == ["a", "b"]
    assert list(cost_table.chosen(costs_of("tests", a=20.0, b=10.0, c=12.5), kept)["tests"]) == ["a", "c"]
    assert list(cost_table.chosen(costs_of("steps", a=1.0, b=2.0, c=3.0), {})["steps"]) == ["a", "b", "c"]


def test_the_file_has_one_entry_per_line_and_only_changed_entries_differ(tmp_path: Path) -> None:
    file, source = tmp_path / "cost.json", tmp_path / "run"
    source.mkdir()
    lines = [{"step": "types", "cpu": 20.04, "wall": 21.0}, {"step": "lint", "cpu": 0.336, "wall": 0.4}]
    run = [str(folder_of(source, *lines, one(TRIAL, 1.0), one(TWIN, 2.0))), "--write"]
    assert cost_table.main(run, file) == 0
    before = file.read_text().splitlines()
    assert ' "lint": {"cpu": 0.34, "wall": 0.4},' in before
    assert ' "types": {"cpu": 20.0, "wall": 21.0}' in before
    assert list(json.loads(file.read_text())) == ["machine", "versions", "date", *cost_sources.KINDS]
    folder_of(source, {**lines[0], "cpu": 22.9}, {**lines[1], "cpu": 0.9}, one(TRIAL, 1.1), one(TWIN, 2.3))
    assert cost_table.main(run, file) == 0
    after = file.read_text().splitlines()
    assert [line for line in after if line not in before] == [' "lint": {"cpu": 0.9, "wall": 0.4},']
    folder_of(source, lines[1])
    assert cost_table.main(run, file) == 0
    assert ' "Twin-a": {"cpu": 2.0, "wall": 0.5}' in file.read_text().splitlines(), "what was not measured is kept"
    folder_of(source, {**lines[1], "cpu": 0.44})
    for machine, expected in ((json.loads(file.read_text())["machine"], 0.34), ("another", 0.44)):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"machine": machine}))
        assert cost_table.main(run, file) == 0
        assert f' "lint": {{"cpu": {expected}, "wall": 0.4}}' in file.read_text().splitlines()


def test_the_table_has_sums_and_lists_the_costliest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cost_table.DEAREST, "twins", 2)
    costs = costs_of("twins", a=1.0, b=30.0, c=2.0)
    recorded = {"machine": "2 cores", "twins": {"b": {"cpu": 20.0, "wall": 1.0}, "c": {"cpu": 2.1, "wall": 1.0}}}
    lines = cost_table.table(costs, recorded).splitlines()
    assert lines[0].split() == ["CPU", "s", "wall", "s", "recorded", "on", "2", "cores"]
    assert [line.split() for line in lines[1:]] == [
        ["33.0", "33.0", "3", "twins,", "of", "which", "the", "dearest", "2:"],
        ["30.0", "30.0", "↑", "20", "b"],
        ["2.0", "2.0", "2.1", "c"],
    ]


def test_an_unusable_source_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cost_table.main([str(tmp_path / "nowhere.xml")]) == 2
    assert "ci/cost: " in capsys.readouterr().err


SPENDING = """
import subprocess, sys, time

def spend(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass

def test_itself():
    spend(0.2)

def test_a_process_of_it():
    own = f"import time\\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", own], check=True)

def test_waiting():
    time.sleep(0.3)
"""


def test_a_session_records_the_time_of_tests_and_their_child_processes(tmp_path: Path) -> None:
    (tmp_path / "test_spending.py").write_text(SPENDING)
    (tmp_path / "conftest.py").write_text(
        "import os\nfrom tests.support import costs\ndef pytest_configure(config):\n    costs.begin(config)\n"
        "def pytest_unconfigure():\n    print('left' if 'COSTS' in os.environ else 'taken')\n"
    )
    command = ["-m", "pytest", "-q", "-p", "no:loraspec", "-p", "no:cacheprovider", "-n", "0", "test_spending.py"]
    ended = python(*command, cwd=tmp_path, COSTS=str(tmp_path / "costs"), PYTHONPATH=str(ROOT), PYTEST_ADDOPTS="")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "taken" in ended.stdout, "a session that a test starts would note its tests too"
    found = cost_sources.read([tmp_path / "costs"]).kinds["tests"]
    costs = {name.rpartition("test_")[2]: cost for name, cost in found.items()}
    assert list(costs) == ["itself", "a_process_of_it", "waiting"]
    assert costs["itself"].cpu >= 0.2
    assert costs["a_process_of_it"].cpu >= 0.5
    assert costs["waiting"].cpu < costs["waiting"].wall


def test_a_step_is_timed_and_its_exit_status_is_passed_on(tmp_path: Path) -> None:
    spending = "import time, sys\nwhile time.process_time() < 0.3: pass\nsys.exit(3)"
    command = [sys.executable, str(ROOT / "ci" / "timed.py")]
    for name, code, status in (("fails", spending, 3), ("ends", "import os; os.kill(os.getpid(), 15)", 143)):
        ended = subprocess.run(
            [*command, name, sys.executable, "-c", code], env={"COSTS": str(tmp_path)}, check=False, timeout=900
        )
        assert ended.returncode == status
    found = cost_sources.read([tmp_path]).kinds["steps"]
    assert list(found) == ["fails", "ends"]
    assert found["fails"].cpu >= 0.3
    assert found["fails"].wall >= 0.3
