"""`loraspec matrix`: the targets it judges, the reports it reads, and the arguments it refuses before it runs."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from conformance import cli
from conformance.errors import UsageError
from conformance.report.matrix import markdown, page, saved_reports
from conformance.report.report import Report
from tests.support.commands import loraspec
from tests.support.matrices import a_report
from tests.test_matrix import FAILS, SCHEMA, made


def committed(folder: Path, **reports: Report) -> Path:
    """A folder of reports as `mine/1_2.json`."""
    for name, found in reports.items():
        file = folder / "mine" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(found.to_json()))
    return folder


def a_text(**others: object) -> str:
    """The text of a report, with other values of some keys."""
    return json.dumps(a_report().to_json() | others)


def test_a_folder_of_reports_is_read_in_the_order_of_versions(tmp_path: Path) -> None:
    committed(tmp_path, v10=a_report(), v9=a_report(**FAILS))
    (tmp_path / "bench.json").write_text("[1, 2]")
    (tmp_path / "mine" / "v9").mkdir()
    (tmp_path / "mine" / "v9" / "repro_LIN-FWD.py").write_text("print()")
    found = saved_reports.reports(tmp_path)
    assert [file.name for file in found] == ["v9.json", "v10.json"]
    column = saved_reports.read(found[0], tmp_path / "report")
    assert (column.scripts, column.code) == ({"LIN-FWD": "print()"}, 1)
    assert column.script_path("LIN-FWD") == "../mine/v9/repro_LIN-FWD.py"


def test_a_report_without_a_date_says_so(tmp_path: Path) -> None:
    old = replace(a_report(), date=None)
    (column,) = [saved_reports.read(file, tmp_path) for file in saved_reports.reports(committed(tmp_path, v1=old))]
    assert "not recorded" in markdown.document(made(column))
    assert "not recorded" in page.document([column])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no report: JSONDecodeError"),
        ("[]", "is no report of `loraspec run`: expected target, versions"),
        (a_text(clauses=[{}]), "is no report: KeyError: 'status'"),
        (a_text(clauses=[{"status": "great"}]), "has the status 'great': expected one of pass"),
        (a_text(clauses=3), "is no report: TypeError"),
    ],
)
def test_an_invalid_report_is_refused(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        saved_reports.read(file, tmp_path)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("word", "is_one"),
    [
        ("right", False),
        ("a.b:c", False),
        ("right.py", False),
        ("some/right.py", False),
        ("package", False),
        ("x.json", True),
        ("some/where", True),
        ("reports", True),
        ("judged", True),
    ],
)
def test_an_argument_is_a_report_or_a_target(
    word: str, is_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("package/__init__.py", "judged/__init__.py", "judged/report.json", "reports/mine/1.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    assert saved_reports.is_report(word) == is_one


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["right", "right"], "'right' is given twice"),
        (["right", "nothing/here.json"], "'nothing/here.json' is no report: FileNotFoundError"),
        (["right", "empty"], "'empty' holds no report.json"),
        (["right", "right.py"], "expected a module, as in `loraspec run right`"),
        (["right", "--group", "linea"], "unknown group 'linea'"),
    ],
)
def test_a_usage_error_is_found_before_anything_runs(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["matrix", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_matrix_combines_targets_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    into, old = tmp_path / "whole", committed(tmp_path, v1=a_report("old"))
    options = ("--clause", "LIN-FWD", "--dtype", "float32", "--profile", "quick", "-n", "0", "--report-dir", str(into))
    ended = loraspec("matrix", "unscaled", "raising", str(old / "mine" / "v1.json"), *options, "--json")
    assert (ended.returncode, ended.stderr) == (2, "")
    found = json.loads(ended.stdout)
    jsonschema.validate(found, SCHEMA)
    assert found == json.loads((into / "matrix.json").read_text())
    assert [target["verdict"] for target in found["targets"]] == ["fail", "not_judged", "pass"]
    assert found["targets"][1]["problem"].startswith("target 'raising' raised on import: ValueError: no licence found")
    unscaled, raising, _ = next(row["cells"] for row in found["clauses"] if row["id"] == "LIN-FWD")
    assert (unscaled["status"], raising) == ("fail", None)
    assert "the adapter term is" in unscaled["message"]
    script = (into / unscaled["script"]).read_text()
    text = (into / "report.html").read_text()
    assert html.escape(script.splitlines()[0], quote=False).replace('"', "&#34;") in text
    assert "raised on import" in text
    assert "✗ fail" in (into / "matrix.md").read_text()
    for part in ("report.html", "report.json", "junit.xml"):
        assert (into / "unscaled" / part).exists()

    assert cli.main(["matrix", str(into / "unscaled"), "--report-dir", str(tmp_path / "again"), "-q"]) == 1
    assert capsys.readouterr().out.strip().startswith("FAIL unscaled: 1 fail; ")
