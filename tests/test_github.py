"""GitHub Actions: annotations at the target's source, the job's summary, and the composite action with its scripts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from conformance.report import github_actions
from conformance.report.report import Report
from conformance.target import source_location
from tests.support.commands import PATIENCE, TARGETS, report_in
from tests.support.matrices import a_clause, a_result, report_of

ROOT = Path(__file__).resolve().parent.parent
ACTION = ROOT / "ci" / "action"
SOURCE = """import functools
from elsewhere import LinearLoRA, clip as clip_grad_norm_


@functools.cache
def lora_linear(x):
    return x


if True:
    PeftConfig = dict


class Kernels:
    def lora_linear(self, x):
        return x


kernels = Kernels()
"""


def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ACTION / "action.yml").read_text())
    return found


def step(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the action as GitHub does, with files for its outputs and its summary."""
    files = {name: str(folder / name.lower()) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    known = {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(folder), **files}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [ACTION / script],
        cwd=folder,
        env={**os.environ, "PATH": path, **known, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_failure_is_annotated_at_the_targets_definition(tmp_path: Path) -> None:
    for name in ("right", "unscaled"):
        (tmp_path / f"{name}.py").write_text((TARGETS / f"{name}.py").read_text())
    ended = step(
        "judge",
        tmp_path,
        LORASPEC_TARGET="unscaled",
        LORASPEC_GROUPS="linear",
        LORASPEC_PROFILE="quick",
        LORASPEC_ARGUMENTS="--clause LIN-FWD --dtype float32 -n 0",
        LORASPEC_REPORT_DIR="some where",
    )
    assert ended.returncode == 1, ended.stderr
    (command,) = (line for line in ended.stderr.splitlines() if line.startswith("::"))
    place, _, text = command.removeprefix("::").partition("::")
    assert place == "error file=unscaled.py,line=6,title=LIN-FWD fail"
    lines = text.split("%0A")
    assert lines[0].startswith("FAIL LIN-FWD  y = x Wᵀ + b + s·(x Aᵀ) Bᵀ")
    assert lines[-2].startswith("rerun    loraspec rerun 'LIN-FWD unscaled lora_linear ")
    assert (tmp_path / "github_output").read_text() == "verdict=fail\nreport=some where/report.json\n"
    assert report_in(tmp_path / "some where")["verdict"] == "fail"
    summary = (tmp_path / "github_step_summary").read_text()
    assert summary.startswith("### FAIL unscaled: 0 clauses pass, 1 fail; ")
    assert re.search(r"^\| linear \| 0 \| 1 \| 0 \| .+ \|$", summary, re.MULTILINE)
    assert "- **LIN-FWD** (MUST) fail: y = x Wᵀ" in summary


def test_a_target_that_does_not_import_is_a_usage_error_and_outputs_no_report(tmp_path: Path) -> None:
    (tmp_path / "loraspec-report").mkdir()
    (tmp_path / "loraspec-report" / "report.json").write_text("old")
    ended = step("judge", tmp_path, LORASPEC_TARGET="nosuch")
    assert ended.returncode == 2
    assert "no module named 'nosuch'" in ended.stderr
    assert (tmp_path / "github_output").read_text() == "verdict=usage\nreport=\n"
    missing = step("judge", tmp_path)
    assert missing.returncode == 1
    assert "LORASPEC_TARGET: is the module to judge" in missing.stderr


@pytest.mark.parametrize(("code", "verdict"), [(0, "pass"), (3, "error"), (137, "error")])
def test_the_exit_code_is_passed_on(code: int, verdict: str, tmp_path: Path) -> None:
    said = a_python(tmp_path, code)
    ended = step("judge", tmp_path, LORASPEC_TARGET="mine", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert ended.returncode == code
    assert (tmp_path / "github_output").read_text() == f"verdict={verdict}\nreport=\n"
    assert said.read_text() == "-m conformance run mine --profile default --report-dir loraspec-report\n"


def test_the_action_installs_its_own_checkout_and_the_targets_packages(tmp_path: Path) -> None:
    said = a_python(tmp_path, 0)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    assert step("install", tmp_path, LORASPEC_PACKAGES="torch==2.13.0 -e .", PATH=path).returncode == 0
    assert step("install", tmp_path, PATH=path).returncode == 0
    assert said.read_text().splitlines() == [f"-m pip install {ROOT} torch==2.13.0 -e .", f"-m pip install {ROOT}"]


def a_python(folder: Path, code: int) -> Path:
    """Make a fake `python` that logs its arguments and exits with `code`; return the path of its log."""
    (folder / "python").write_text(f'#!/bin/sh\necho "$@" >> "{folder}/said"\nexit {code}\n')
    (folder / "python").chmod(0o755)
    return folder / "said"


def test_the_action_is_composite_and_its_inputs_outputs_and_scripts_match() -> None:
    found = action()
    steps = found["runs"]["steps"]
    assert found["runs"]["using"] == "composite"
    for one in steps:
        assert ("uses" in one) != ("run" in one)
        assert "run" not in one or one["shell"] == "bash"
        assert "${{" not in one.get("run", ""), "inputs reach a script as variables, never as its text"
    used = set(re.findall(r"inputs\.([a-z-]+)", str(steps)))
    assert used == set(found["inputs"])
    for name, about in found["inputs"].items():
        assert about["description"], name
        assert about.get("required", False) == ("default" not in about)
    scripts = re.findall(r"\$GITHUB_ACTION_PATH/(\w+)", str(steps))
    assert scripts == ["install", "judge"]
    for one, script in zip([s for s in steps if "run" in s], scripts, strict=True):
        text = (ACTION / script).read_text()
        assert set(one["env"]) == set(re.findall(r"\$\{(LORASPEC_\w+)", text))
        assert os.access(ACTION / script, os.X_OK)
    for name, about in found["outputs"].items():
        assert about["value"] == f"${{{{ steps.run.outputs.{name} }}}}"
        assert f"{name}=%s" in (ACTION / "judge").read_text()
    assert [one["id"] for one in steps if "id" in one] == ["run"]


def a_report(*clauses: tuple[str, str, str]) -> Report:
    """A report with a clause for each id, level and status."""
    message = "one\nother: 5"
    found = []
    for name, level, status in clauses:
        result = a_result(status=status, message=message)
        about = {"level": level, "status": status, "sentence": "50%, really", "message": message}
        found.append(a_clause(name, "linear", result, **about))
    return report_of(*found)


def test_annotations_are_limited_to_ten_and_have_no_path_outside_the_workspace(tmp_path: Path) -> None:
    clauses = [("S", "SHOULD", "fail"), *((f"A-{n}", "MUST", "fail") for n in range(12)), ("P", "MUST", "pass")]
    inside = tmp_path / "a, b" / "mine.py"
    found = github_actions.commands(a_report(*clauses), {"f": (str(inside), 7)}, tmp_path, tmp_path)
    assert len(found) == 11
    assert found[0].startswith("::error file=a%2C b/mine.py,line=7,title=A-0 fail::FAIL A-0  50%25, really ")
    assert found[0].endswith("%0Aseen     one%0A         other: 5")
    assert found[-1].startswith("::warning file=a%2C b/mine.py,line=7,title=S fail::FAIL (SHOULD) S")
    elsewhere = github_actions.commands(a_report(*clauses), {"f": ("/usr/lib/theirs.py", 7)}, tmp_path, tmp_path)
    assert elsewhere[0].startswith("::error title=A-0 fail::")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("lora_linear", 6),
        ("LinearLoRA", 2),
        ("clip_grad_norm_", 2),
        ("PeftConfig", 11),
        ("kernels", 19),
        ("nowhere", 1),
    ],
)
def test_the_line_of_a_modules_definition_is_found(name: str, line: int, tmp_path: Path) -> None:
    module = ModuleType("mine")
    module.__file__ = str(tmp_path / "mine.py")
    assert source_location.defined(module, module, name) is None
    (tmp_path / "mine.py").write_text(SOURCE)
    assert source_location.defined(module, module, name) == (str(tmp_path.resolve() / "mine.py"), line)
    assert source_location.defined(ModuleType("builtin"), object(), name) is None


def test_the_line_of_a_methods_definition_is_found(tmp_path: Path) -> None:
    module = ModuleType("mine")
    module.__file__ = str(tmp_path / "mine.py")
    (tmp_path / "mine.py").write_text(SOURCE)
    kernels = type("Kernels", (), {})
    for thing in (kernels, kernels()):
        assert source_location.defined(module, thing, "lora_linear") == (str(tmp_path.resolve() / "mine.py"), 15)
        assert source_location.defined(module, thing, "inherited") == (str(tmp_path.resolve() / "mine.py"), 14)
