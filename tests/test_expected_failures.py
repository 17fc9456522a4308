"""Expected failures in a file: written from a report, read by a run, by a declaration and by pytest, as strictly."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conformance import cli
from conformance.errors import TargetError, UsageError
from conformance.report.expected_failures import expected_failures
from conformance.report.report import Report, ReportedClause
from conformance.target import deviations
from conformance.target.target import Target
from tests.support.commands import judged, loraspec, pytested
from tests.targets import right

CLAUSES = ("LIN-FWD-SCALE", "LIN-FWD-ZERO")


@pytest.fixture(scope="module")
def unscaled() -> Report:
    """The report of a target that fails two clauses."""
    return judged("unscaled", clauses=CLAUSES)


def with_statuses(report: Report, **statuses: str) -> Report:
    """The report with other statuses of some clauses, whose ids are written with underscores."""
    clauses: list[ReportedClause] = []
    for clause in report.clauses:
        status = statuses.get(clause.id.replace("-", "_"), clause.status)
        clauses.append(dataclasses.replace(clause, status=status))
    return dataclasses.replace(report, clauses=tuple(clauses))


def test_the_file_has_each_failing_clause_with_its_message_and_a_run_reads_it_back(
    unscaled: Report, tmp_path: Path
) -> None:
    path = tmp_path / "known.toml"
    path.write_text(deviations.text(expected_failures(unscaled, {}, narrowed=False)), encoding="utf-8")
    found = deviations.read(path)
    assert tuple(found) == CLAUSES
    assert found["LIN-FWD-SCALE"].startswith("worst y[0, 0]: got ")
    assert all("\n" not in reason and len(reason) <= 300 for reason in found.values())
    assert "# The scale, of any sign and size, multiplies the adapter's term only" in path.read_text(encoding="utf-8")
    again = judged("unscaled", clauses=CLAUSES, deviations=tuple(found.items()))
    assert [(clause.status, clause.reason) for clause in again.clauses] == [("deviation", found[c]) for c in CLAUSES]
    assert again.verdict == "pass"


def test_an_expected_failure_that_passes_fails_the_run_and_leaves_the_file() -> None:
    report = judged("right", clauses=CLAUSES, deviations=(("LIN-FWD-SCALE", "of old"),))
    assert report.verdict == "fail"
    assert report.clauses[0].stale
    assert expected_failures(report, {"LIN-FWD-SCALE": "of old"}, narrowed=False) == {}


def test_reasons_stay_where_the_clause_still_fails_or_was_not_judged(unscaled: Report) -> None:
    earlier = {"LIN-FWD-SCALE": "issue 7", "MRG-FLAG": "issue 8"}
    assert expected_failures(unscaled, earlier, narrowed=False).items() > earlier.items()
    passing = with_statuses(unscaled, LIN_FWD_SCALE="pass", LIN_FWD_ZERO="not_claimed")
    assert expected_failures(passing, earlier, narrowed=False) == {"MRG-FLAG": "issue 8"}
    assert expected_failures(passing, earlier, narrowed=True) == earlier


@pytest.mark.parametrize("reason", ['a "quoted" \\ reason', "two\nlines", "a sign \x7f that TOML escapes", "÷ ≤"])
def test_a_reason_of_any_signs_is_read_back(reason: str) -> None:
    assert tomllib.loads(deviations.text({"LIN-FWD": reason})) == {"LIN-FWD": reason}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("LIN-FWD: x", r"known.toml' is no TOML: .*line 1.*; expected lines like LIN-AMP = \"the reason"),
        ("LIN-FWD = 'a'\nLIN-FWD = 'b'", "is no TOML: Cannot overwrite a value"),
        ("LIN-FWD = 3", "gives LIN-FWD the int 3 as its reason: expected lines like"),
        ("LIN-FWD = ' '", "gives LIN-FWD an empty text as its reason"),
        ("[linear]\nLIN-FWD = 'x'", "gives linear the dict .* as its reason"),
        ("LIN-FWT = 'x'", "unknown clause in the deviations file .*: 'LIN-FWT': did you mean LIN-FWD"),
    ],
)
def test_a_malformed_file_is_one_usage_error(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        deviations.read(path)
    thing = SimpleNamespace(CONFORMANCE={"deviations": path}, lora_linear=right.lora_linear)
    with pytest.raises(TargetError, match=rf"mine.CONFORMANCE\['deviations'\]: .*{says[:12]}"):
        Target.of(thing, "mine")


def test_a_declaration_names_a_file_beside_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "filed.py").write_text('CONFORMANCE = {"deviations": "lists/known.toml"}\n', encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TargetError, match=r"cannot read the deviations file .*lists/known\.toml': No such file"):
        Target.load("filed")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "known.toml").write_text('LIN-AMP = "issue 12"\n', encoding="utf-8")
    assert Target.load("filed").deviations == {"LIN-AMP": "issue 12"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--deviations", "none.toml"], "cannot read the deviations file 'none.toml': No such file"),
        (["--write-deviations", "right.py"], "the deviations file 'right.py' is no TOML"),
        (
            ["--write-deviations", "nowhere/known.toml"],
            "cannot write 'nowhere/known.toml': expected a file in a folder",
        ),
        (["--watch-clause", "LIN-FWD", "--write-deviations", "x.toml"], "--write-deviations does not go with --watch"),
        (["--watch-clause", "LIN-FWD", "--exclude", "LIN-AMP"], "--exclude does not go with --watch"),
    ],
)
def test_a_wrong_option_is_found_before_the_run(
    options: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(right.__file__).parent)
    assert cli.main(["run", "right", *options]) == 2
    assert says in capsys.readouterr().err


def test_a_run_writes_the_file_and_pytest_expects_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    chosen = ("--clause", "LIN-FWD-S*", "--dtype", "float32", "--profile", "quick")
    run: Any = ("run", "unscaled", *chosen, "-n", "0", "-q", "--report-dir", str(tmp_path))
    ended = loraspec(*run, "--write-deviations", str(path))
    assert ended.returncode == 1
    assert ended.stdout.endswith(f"expected {path} has 1 expected failures; next: --deviations {path}\n")
    assert loraspec(*run, "--deviations", str(path)).returncode == 0
    suite = ("-q", "-p", "no:cacheprovider", "--pyargs", "conformance.clauses.linear_and_layer.forward")
    ended = pytested(*suite, "--target", "unscaled", *chosen, "--deviations", str(path))
    assert ended.returncode == 0, ended.stdout
    assert "1 xfailed" in ended.stdout
