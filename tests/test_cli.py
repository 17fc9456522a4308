"""The command `loraspec`: exit codes, one clear message for each usage error, and the output of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from conformance import cli
from conformance.commands import run
from conformance.errors import UsageError
from conformance.run import plan
from conformance.run.selection import Selection
from conformance.specification import spec_page
from tests.support.commands import TARGETS, judged, loraspec, python, run_target


@pytest.fixture
def at_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to the folder of the small targets and put it on the import path, for one test."""
    monkeypatch.chdir(TARGETS)
    monkeypatch.setattr(sys, "path", [str(TARGETS), *sys.path])
    monkeypatch.setenv("TRITON_INTERPRET", "1")


LIGHT = """
import sys
from conformance.cli import main
for arguments in (["--help"], ["--version"], ["explain", "LIN-FWD"], ["init", sys.argv[1]], ["run", "a.py"]):
    try:
        main(arguments)
    except SystemExit:
        pass
heavy = {"torch", "numpy", "hypothesis", "triton", "pytest", "jinja2"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_help_version_explain_and_init_import_no_heavy_package(tmp_path: Path) -> None:
    ended = python("-c", LIGHT, str(tmp_path / "mine.py"))
    assert ended.returncode == 0, ended.stderr
    assert "exit codes" in ended.stdout
    assert "y = x Wᵀ + b" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "right", "--group", "linea"], "unknown group 'linea': did you mean linear or life?"),
        (["run", "right", "--dtype", "fp32"], "unknown dtype 'fp32': expected one of float64, float32"),
        (["run", "right", "--profile", "fast"], "unknown profile 'fast': expected one of quick"),
        (["run", "right", "--lane", "tpu"], "unknown lane 'tpu'"),
        (["run", "right", "--device", "mps"], "unknown device 'mps'"),
        (["run", "right", "--device", "cuda", "--lane", "cpu"], "lane 'cpu' runs on the CPU"),
        (["run", "right", "--spec", "9.9"], "unknown spec '9.9'"),
        (["run", "right", "--clause", "LIN-FWT*"], "no clause matches 'LIN-FWT*': did you mean LIN-FWD"),
        (["run", "right", "--exclude", "mergers"], "unknown clause or group 'mergers': did you mean merge"),
        (["run", "right.py"], "expected a module, as in `loraspec run right`"),
        (["run", "some/right.py"], "expected a module, as in `loraspec run some.right`"),
        (["run", "right", "--report-dir", "right.py/here"], "cannot write reports to 'right.py/here'"),
        (["run", "right", "--report-dir", "right.py"], "cannot write reports to 'right.py'"),
        (["explain", "LIN-FWT"], "unknown clause 'LIN-FWT': did you mean LIN-FWD"),
        (["explain", "normal"], "unknown clause 'normal': "),  # a word of many cases
        (["rerun", "LIN-FWD"], "starts with 1 words without '='"),
        (["rerun", "LIN-FWD right 'm=3"], "No closing quotation"),
        (["rerun", "LIN-FWD right m=3", "k=4"], "'k=4' comes after the case"),
        (["rerun", "none.json"], "'none.json' is no report: FileNotFoundError"),
        (["rerun", "LIN-FWT right m=3"], "unknown clause 'LIN-FWT': did you mean LIN-FWD"),
        (["rerun", "LIN-FWD right m=3 q=1"], "LinearCase has no field 'q'"),
        (["rerun", "LIN-FWD right m=three"], "m='three' in a case string must be of type int"),
        (
            ["rerun", "LIN-FWD right lora_lin m=3"],
            "unknown subject of LIN-FWD 'lora_lin': expected one of lora_linear",
        ),
        (["rerun", "LAY-FWD right m=3"], "does not claim LAY-FWD: it has no LinearLoRA"),
        (["init", "right.py"], "'right.py' exists: it is not overwritten"),
        (["init", "my-target.py"], "is not a module file: expected a name like my_target.py"),
        (["init", "nowhere/mine.py"], "cannot write 'nowhere/mine.py'"),
    ],
)
@pytest.mark.usefixtures("at_targets")
def test_a_usage_error_prints_one_message_and_exits_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("loraspec: ")
    assert says in err
    assert out == ""


@pytest.mark.parametrize("words", ["explain LIN-FWD", "run right --clause LIN-FWD", "run right --watch-clause LIN-FWD"])
@pytest.mark.usefixtures("at_targets")
def test_a_clause_that_is_newer_than_the_page_is_not_called_unknown(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {name: entry for name, entry in spec_page.read().items() if name != "LIN-FWD"}
    monkeypatch.setattr(spec_page, "read", lambda: others)
    assert cli.main(words.split()) == 2
    says = "clause 'LIN-FWD' is declared in clauses/linear_and_layer/forward.py but not in SPEC.md: run `loraspec spec`"
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "matrix"])
def test_patterns_and_exclusions_reach_the_selection(command: str) -> None:
    words = [command, "right", "--clause", "LIN-FWD*,LAY-FWD", "--exclude", "LIN-FWD-ZERO", "--exclude", "layer"]
    selection = run.selected(cli._parser().parse_args(words), "right")
    assert selection.clauses == ("LIN-FWD*", "LAY-FWD")
    assert selection.excluded == ("LIN-FWD-ZERO", "layer")


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "right", "-n", "two"], ["run", "right", "--timeout", "0"]])
def test_a_wrong_option_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "nosuch"}, "'nosuch' does not import: no module named 'nosuch'"),
        ({"target": "right:nothing"}, "has no attribute 'nothing'"),
        ({"target": "raising"}, r"raised on import: ValueError: no licence found \(.*raising.py, line 3\)"),
        ({"target": "misshapen:empty"}, "claims none of the chosen groups:\n  linear +lacks lora_linear"),
        ({"target": "misshapen:unbound"}, "does not bind:\n  lora_linear.* does not take its 6 positional"),
        ({"target": "misshapen:unbound", "excluded": ["linear"]}, "claims none of the chosen groups:\n  layer +lacks"),
        ({"target": "misshapen:uncallable"}, "lora_linear is of type int: expected a callable"),
        ({"target": "misshapen:misdeclared"}, "unknown key 'dtype'"),
        (
            {"target": "right", "groups": ["layer"]},
            "claims none of the chosen groups:\n  layer +lacks LinearLoRA",
        ),
        ({"target": "right", "clauses": ["LIN-FWT"]}, "unknown clause 'LIN-FWT': did you mean LIN-FWD"),
        (
            {"target": "right", "groups": ["linear"], "excluded": ["LIN-*"]},
            "has nothing to judge in the chosen groups and clauses",
        ),
        ({"target": "right", "lane": "interpreter"}, "no subject that runs in lane 'interpreter'"),
        (
            {"target": "narrow:refusing", "dtypes": ["float16"]},
            "declares float32: nothing to judge in float16",
        ),
        ({"target": "deviating:unknown"}, r"CONFORMANCE\['deviations'\]: 'LIN-FWT': did you mean LIN-FWD"),
    ],
)
@pytest.mark.usefixtures("at_targets")
def test_a_target_that_cannot_be_tested_is_a_usage_error(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan.plan(Selection.of(**options))  # type: ignore[arg-type]


def test_a_target_that_does_not_import_exits_2_and_keeps_the_old_report(tmp_path: Path) -> None:
    old = tmp_path / "report.json"
    old.write_text("old")
    ended = loraspec("run", "raising", "--report-dir", str(tmp_path))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("loraspec: target 'raising' raised on import: ValueError: no licence found")
    assert old.read_text() == "old"


def test_a_target_that_ends_the_process_on_import_exits_2(tmp_path: Path) -> None:
    ended = loraspec("run", "exiting", "--report-dir", str(tmp_path))
    assert ended.returncode == 2
    assert "importing target 'exiting' ended the process, exit code 5" in ended.stderr


def test_an_error_of_the_suite_exits_3_and_is_not_the_targets_failure(tmp_path: Path) -> None:
    options = ("--clause", "LIN-FWD,LIN-FWD-ZERO", "--dtype", "float32", "-n", "0")
    ended, report = run_target("sabotage", tmp_path, *options)
    assert ended.returncode == 3
    assert "ZeroDivisionError" in ended.stdout
    assert report["verdict"] == "error"
    assert {c["id"]: c["status"] for c in report["clauses"]} == {
        "LIN-FWD": "pass",
        "LIN-FWD-ZERO": "inconclusive",
    }
    assert "ZeroDivisionError" in report["errors"][0]["traceback"]


def test_a_target_made_by_init_passes_smoke_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loraspec("init", "mine.py", cwd=tmp_path).returncode == 0
    assert len([line for line in (tmp_path / "mine.py").read_text().splitlines() if line.strip()]) <= 15
    seen = loraspec("run", "mine", "--smoke", cwd=tmp_path)
    assert seen.returncode == 0, seen.stderr
    assert "clauses on lora_linear" in seen.stdout
    assert "layer     not claimed: lacks LinearLoRA" in seen.stdout
    options = ("--group", "linear", "--profile", "quick", "--clause", "LIN-FWD", "-n", "1", "--json")
    ended = loraspec("run", "mine", *options, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads((tmp_path / "loraspec-report" / "report.json").read_text())
    assert json.loads(ended.stdout) == report
    assert report["verdict"] == "pass"
    # the generated target passes the whole group
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    whole = judged("mine", groups=["linear"], dtypes=["float32", "bfloat16"])
    assert whole.verdict == "pass", [clause for clause in whole.clauses if clause.status != "pass"]


@pytest.mark.usefixtures("at_targets")
def test_a_failure_prints_case_error_and_the_commands_to_repeat_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--profile", "quick", "--clause", "LIN-FWD", "--dtype", "float32", "-n", "0")
    assert cli.main(["run", "unscaled", *options, "--report-dir", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    failed = report["clauses"][0]
    assert (failed["status"], report["verdict"]) == ("fail", "fail")
    lines = capsys.readouterr().out.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("FAIL LIN-FWD  y = x Wᵀ"))
    block = {line[:9].strip(): line[9:] for line in lines[start + 1 : start + 9]}
    assert lines[start].endswith("loraspec explain LIN-FWD")
    assert block["target"] == "unscaled, lora_linear, float32, cpu"
    assert block["case"].startswith(failed["case"])
    assert "shrunk from " + failed["found"] in block["case"]
    assert "error ÷ budget" in block["worst"] or "equality required" in block["worst"]
    assert block["rerun"] == f"loraspec rerun 'LIN-FWD unscaled lora_linear {failed['case']}'"
    assert block["script"].endswith("repro_LIN-FWD.py runs without the suite")

    assert cli.main(["rerun", block["rerun"].removeprefix("loraspec rerun ").strip("'")]) == 1
    again = capsys.readouterr().out
    assert block["worst"].strip() in again
    assert cli.main(["rerun", str(tmp_path / "report.json"), "LIN-FWD"]) == 1
    assert capsys.readouterr().out == again
    assert cli.main(["rerun", f"LIN-FWD right {failed['case']}"]) == 0
    assert capsys.readouterr().out.startswith("PASS LIN-FWD right")
