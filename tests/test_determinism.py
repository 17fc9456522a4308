"""The same seed gives the same report, except times, for any number of workers, test order and hash seed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from conformance.cases.case import Case, Space
from conformance.judgement.result import without_addresses
from conformance.numerics.dtypes import FLOAT_DTYPES
from tests.support.commands import pytested, python, report_in, run_target, without_times

CLAUSES = (
    "LIN-FWD",
    "LIN-BWD-DB",
    "LIN-DROP-EVAL",
    "LAY-FWD",
    "LAY-BWD-LAYOUT",
    "CFG-DEFAULTS",
    "CFG-UNKNOWN",
    "GRN-NORM",
)
CHOSEN = ("--clause", ",".join(CLAUSES), "--dtype", "float32,bfloat16")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, str]]:
    """The report and the reproducers of a run without workers."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONHASHSEED", "1")
        ended, report = run_target("flawed", folder, *CHOSEN, "-n", "0")
    assert ended.returncode == 1
    return without_times(report), scripts(folder)


def scripts(folder: Path) -> dict[str, str]:
    """The text of each reproducer in a report folder."""
    return {path.name: path.read_text() for path in folder.glob("repro_*.py")}


def test_the_run_has_passes_failures_addresses_and_reproducers(alone: tuple[dict[str, Any], dict[str, str]]) -> None:
    report, written = alone
    statuses = {clause["id"]: clause["status"] for clause in report["clauses"]}
    assert {"pass", "fail"} == set(statuses.values())
    assert {clause["group"] for clause in report["clauses"] if clause["status"] == "fail"} == {
        "linear",
        "layer",
        "gradnorm",
        "config",
    }
    assert "<object object at 0x…>" in json.dumps(report, ensure_ascii=False)
    assert any(clause["launches"] for clause in report["clauses"])
    assert len(written) >= 4


def test_the_number_of_workers_changes_nothing(
    alone: tuple[dict[str, Any], dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "13")
    ended, report = run_target("flawed", tmp_path, *CHOSEN, "-n", "3")
    assert ended.returncode == 1
    assert (without_times(report), scripts(tmp_path)) == alone


def test_the_order_of_tests_on_one_worker_changes_nothing(
    alone: tuple[dict[str, Any], dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    options = ("--target", "flawed", "--profile", "quick", *CHOSEN, "--report-dir", str(tmp_path), "-n", "1")
    modules = [
        f"conformance.clauses.{folder}" for folder in ("linear_and_layer", "linear", "layer", "config", "gradnorm")
    ]
    words = ("-q", "-p", "no:cacheprovider", "-p", "shuffling", "--pyargs")
    ended = python("-m", "pytest", *words, *modules, *options)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    ran = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()[1:]]
    assert [event["result"]["clause"] for event in ran] != sorted(
        (event["result"]["clause"] for event in ran), key=CLAUSES.index
    )
    assert (without_times(report_in(tmp_path)), scripts(tmp_path)) == alone


def test_drawn_cases_do_not_depend_on_imported_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = drawn()
    (tmp_path / "full_of_constants.py").write_text(f"NUMBERS = {list(range(300, 60_000, 250))}\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("full_of_constants")
    try:
        assert drawn() == before
    finally:
        del sys.modules["full_of_constants"]


def drawn() -> list[Case]:
    """200 cases that Hypothesis draws with the search's settings."""
    from hypothesis import HealthCheck, Phase, given, settings

    cases: list[Case] = []

    @settings(
        max_examples=200,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(Space(Case, dtype=FLOAT_DTYPES).strategy())
    def look(case: Case) -> None:
        cases.append(case)

    look()
    return cases


def test_addresses_are_removed_from_messages() -> None:
    assert without_addresses(f"{object()}, 0x10") == "<object object at 0x…>, 0x10"


def test_an_error_of_the_suite_names_neither_worker_nor_addresses(tmp_path: Path) -> None:
    options = ("--target", "sabotage", "--clause", "LIN-FWD-ZERO", "--report-dir", str(tmp_path), "-n", "1")
    pytested("-q", "-p", "no:cacheprovider", "--pyargs", "conformance.clauses.linear_and_layer", *options)
    error = report_in(tmp_path)["errors"][0]
    assert "ZeroDivisionError" in error["traceback"]
    assert "[gw0]" not in error["traceback"]
    assert "at 0x…" in error["traceback"]
    assert "at 0x7" not in error["traceback"]
