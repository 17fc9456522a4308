"""The pytest plugin: it runs the suite on any target, and does nothing in unrelated pytest sessions."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.errors import UsageError
from conformance.isolation import package_shadowing
from conformance.report.trial_keys import key_of
from conformance.run.selection import Selection
from tests.support.commands import PATIENCE, TARGETS, pytested, python

FOREIGN = {
    "conftest.py": """
        def pytest_addoption(parser):
            for name in ("--target", "--device", "--profile", "--seed"):
                parser.addoption(name, default="theirs")
        """,
    "test_theirs.py": """
        import sys

        def test_theirs(pytestconfig):
            assert pytestconfig.getoption("--device") == "mine"
            assert pytestconfig.getoption("--seed") == "theirs"
            assert not {"torch", "hypothesis", "numpy", "rich"} & set(sys.modules)
            assert pytestconfig.pluginmanager.hasplugin("loraspec")
            assert not pytestconfig.pluginmanager.hasplugin("loraspec-session")
        """,
}


def test_the_plugin_does_nothing_in_an_unrelated_session(tmp_path: Path) -> None:
    for name, text in FOREIGN.items():
        lines = text.splitlines()
        (tmp_path / name).write_text("\n".join(line[8:] for line in lines) + "\n")
    # only this plugin is loaded, because other plugins may import heavy packages
    code = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    ended = subprocess.run(
        [sys.executable, "-c", code, "-q", "-p", "loraspec", "--device", "mine", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def suite(*options: str, cwd: Path = TARGETS) -> subprocess.CompletedProcess[str]:
    """`pytest --pyargs conformance.clauses.linear_and_layer.forward` on one clause and dtype."""
    words = (
        "-q",
        "--pyargs",
        "conformance.clauses.linear_and_layer.forward",
        "--profile",
        "quick",
        "--dtype",
        "float32",
    )
    return pytested("-p", "no:cacheprovider", *words, *options, cwd=cwd)


def test_a_right_target_passes() -> None:
    ended = suite("--target", "right", "--clause", "LIN-FWD")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 passed" in ended.stdout
    assert "loraspec: right, 1 clauses, 0 failing; worst error ÷ budget" in ended.stdout


def test_a_wrong_target_fails_with_its_case_under_xdist(tmp_path: Path) -> None:
    words = ("--clause", "LIN-FWD", "--group", "linear", "-n", "1", "--report-dir", str(tmp_path))
    ended = suite("--target", "unscaled", *words)
    assert ended.returncode == 1
    assert "1 failed" in ended.stdout
    assert "rerun    loraspec rerun 'LIN-FWD unscaled lora_linear " in ended.stdout
    assert "loraspec: unscaled, 1 clauses, 1 failing" in ended.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        "events.jsonl",
        "junit.xml",
        "report.html",
        "report.json",
        "repro_LIN-FWD.py",
    }


@pytest.mark.parametrize(
    ("target", "code", "says"),
    [
        ("declared", 0, "4 xfailed"),
        ("stale", 1, "FAILED LIN-FWD-SCALE: a declared deviation (https://example.org/issues/1)"),
    ],
)
def test_a_declared_deviation_xfails_and_a_stale_one_fails(target: str, code: int, says: str) -> None:
    words = (
        "-q",
        "-p",
        "no:cacheprovider",
        "--pyargs",
        "conformance.clauses.linear_and_layer.forward",
        "--profile",
        "quick",
    )
    chosen = ("--target", f"deviating:{target}", "--clause", "LIN-FWD-SCALE")
    ended = pytested(*words, *chosen)
    assert ended.returncode == code, ended.stdout
    assert says in ended.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--target", "nosuch"), "target 'nosuch' does not import"),
        (("--lane", "tpu"), "unknown lane 'tpu'"),
        (("--seed", "x"), "--seed 'x' is not an integer"),
        (("--clause", "LIN-FWT*"), "no clause matches 'LIN-FWT*': did you mean LIN-FWD"),
        (("--exclude", "linea"), "unknown clause or group 'linea': did you mean linear"),
        (("--deviations", "none.toml"), "cannot read the deviations file"),
        (("--report-dir", "right.py"), "cannot write reports to 'right.py'"),
    ],
)
def test_a_wrong_option_is_a_usage_error(options: tuple[str, str], says: str) -> None:
    ended = suite(*options)
    assert ended.returncode in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    assert says in ended.stdout + ended.stderr


def test_an_option_name_that_another_plugin_uses_is_left_to_it(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "def pytest_addoption(parser):\n    parser.getgroup('other').addoption('--profile', default='theirs')\n"
    )
    ended = pytested(
        "-q", "-p", "other", "--pyargs", "conformance.clauses.linear_and_layer.forward", "--collect-only",
        "--loraspec-profile", "quick", "--profile", "x", "--target", "reference", "--clause", "LIN-FWD",
        cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("nodeid", "key"),
    [
        (
            "conformance/clauses/linear_and_layer/forward.py::test_x[LIN-FWD-LEAD-lora_linear-float32]",
            ("LIN-FWD-LEAD", "lora_linear", "float32"),
        ),
        ("test_config.py::test_x[CFG-A-PeftConfig-any]", ("CFG-A", "PeftConfig", "any")),
        ("conformance/clauses/linear_and_layer/forward.py::test_x[not_claimed]", None),
        ("conformance/clauses/linear_and_layer/forward.py::test_x", None),
    ],
)
def test_clause_subject_and_dtype_are_read_from_a_nodeid(nodeid: str, key: tuple[str, str, str] | None) -> None:
    assert key_of(nodeid) == key


@pytest.mark.parametrize("name", ["reference", "conformance", "optimized"])
def test_a_package_that_shadows_the_target_stops_the_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_shadowing.check([f"{name}.targets:Layer"])
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / name).mkdir()
    package_shadowing.check([name])  # a folder without __init__.py does not shadow a package
    (tmp_path / name / "__init__.py").touch()
    package_shadowing.check(["my_target"])
    with pytest.raises(UsageError, match=f"the package '{name}' is .*{name}, which shadows this distribution's"):
        package_shadowing.check([name])


PYTEST = "import sys; sys.path.pop(0); import pytest; sys.exit(pytest.main(sys.argv[1:]))"  # as the script does


def test_a_target_in_the_users_folder_is_found_by_the_script_pytest(tmp_path: Path) -> None:
    (tmp_path / "my_target.py").write_text("def lora_linear(*args):\n    raise NotImplementedError\n")
    asked = ("-q", "--pyargs", "conformance.clauses.linear.arguments", "--target", "my_target", "--collect-only")
    ended = python("-c", PYTEST, *asked, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "LIN-SHAPES-lora_linear" in ended.stdout


def test_clauses_are_chosen_and_left_out_by_patterns() -> None:
    selection = Selection.of("t", clauses=["LIN-FWD*"], excluded=["*-LAYOUT,merge", "LAY-?WD"])
    named = {"LIN-FWD": True, "LIN-FWD-ZERO": True, "LIN-FWD-LAYOUT": False, "LIN-BWD-DX": False}
    assert {name: selection.includes(name, "linear") for name in named} == named
    selection = dataclasses.replace(selection, clauses=())
    assert not selection.includes("LAY-FWD", "layer")
    assert not selection.includes("MRG-FLAG", "merge")
    assert not selection.includes_group("merge")
    assert selection.includes_group("layer")
    assert Selection.from_dict(json.loads(json.dumps(dataclasses.asdict(selection)))) == selection


def test_list_options_may_be_repeated_or_separated_by_commas() -> None:
    selection = Selection.of("t", groups=["linear,layer", "merge"], dtypes=None)
    assert selection.groups == ("linear", "layer", "merge")
    assert Selection.of("t", lane="gpu").device == "cuda"
