"""The package `loraspec`: a check in a notebook, clauses as tests of a user's file, and repositories beside it."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import loraspec
from loraspec import distribution
from tests.support.commands import TARGETS, pytested, python
from tests.targets import layered, right

ONE = {"clauses": "LIN-FWD", "dtypes": "float32"}
LAYER = {"clauses": ["LAY-FWD-LEAD"], "dtypes": ["float32"]}


class Doubled(layered.LinearLoRA):  # type: ignore[misc, name-defined]
    """A layer whose adapter term is twice what it should be."""

    def forward(self, x: torch.Tensor) -> Any:
        return 2 * super().forward(x) - linear(x, self.weight, self.bias)


@pytest.fixture(autouse=True)
def _targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TARGETS)


def my_function(x: Any, w: Any, b: Any, down: Any, up: Any, s: float) -> Any:
    """`lora_linear` under another name."""
    return linear(x, w, b) + s * linear(linear(x, down), up)


def test_importing_the_front_imports_nothing_heavy() -> None:
    code = (
        "import loraspec, sys; print(sorted({'torch', 'numpy', 'conformance', 'reference', 'pytest'} & {*sys.modules}))"
    )
    assert python("-c", code).stdout == "[]\n"


def test_a_right_layer_passes_a_check() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    report = loraspec.check(layered.LinearLoRA, **LAYER)
    assert report.passed
    assert report.failures == ()
    report.raise_for_failures()
    assert repr(report).splitlines()[-1].startswith("PASS LinearLoRA: 1 clauses pass; ")
    assert "#1a7f37" in report._repr_html_()
    assert (torch.get_num_threads(), bool((torch.get_rng_state() == state).all())) == (threads, True)


@pytest.mark.parametrize("target", [Doubled, Doubled(nn.Linear(3, 2))], ids=["class", "instance"])
def test_a_wrong_layer_fails_with_its_case_and_the_next_call(target: Any) -> None:
    report = loraspec.check(target, **LAYER)
    assert report.failures == ("LAY-FWD-LEAD",)
    with pytest.raises(AssertionError, match=r"error ÷ budget|equality required") as raised:
        report.raise_for_failures()
    text = str(raised.value)
    assert "again    loraspec.check(Doubled, clauses=['LAY-FWD-LEAD'])" in text
    assert "loraspec_object" not in text
    assert "report.json" not in text
    assert report._repr_html_().startswith('<div><b style="color: #cf222e">FAIL Doubled: 0 clauses pass, 1 fail')


@pytest.mark.parametrize(
    ("target", "names", "verdict"),
    [
        (my_function, None, "pass"),
        (right, None, "pass"),
        ("unscaled", None, "fail"),
        (None, {"lora_linear": my_function}, "pass"),
        ("unscaled", {"lora_linear": right.lora_linear}, "pass"),
        (sys.modules[__name__], {"lora_linear": "my_function"}, "pass"),
        (f"{__name__}:my_function", None, "pass"),
    ],
    ids=["function", "module", "target", "names", "names in a module", "name in a module", "attribute"],
)
def test_what_can_be_checked(target: Any, names: dict[str, Any] | None, verdict: str) -> None:
    assert loraspec.check(target, names=names, workers=1, **ONE).report.verdict == verdict


def test_a_check_writes_a_report_where_asked(tmp_path: Path) -> None:
    report = loraspec.check(right, report_dir=tmp_path / "report", **ONE)
    assert (tmp_path / "report" / "report.json").exists()
    assert f"report   {tmp_path / 'report' / 'report.json'}" in repr(report)


def test_a_process_that_cannot_be_copied_judges_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert loraspec.check(Doubled, **LAYER).failures == ("LAY-FWD-LEAD",)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        (
            42,
            {},
            "42 is of type int: expected a layer class, an instance of one, a function like lora_linear, a module",
        ),
        (nn.Linear, {}, "Linear does not bind:\n  LinearLoRA\\(in_features.*\n.* f\\(orig_linear, dim, alpha, "),
        ("nosuch", {}, "target 'nosuch' does not import: no module named 'nosuch'"),
        (ModuleType("empty"), {}, "the module 'empty' has none of the names LinearLoRA, .* names={'LinearLoRA': 'MyLa"),
        (Doubled, {"groups": "layr"}, "unknown group 'layr': did you mean layer or linear"),
        (Doubled, {"clauses": ["LAY-FDW"]}, "unknown clause 'LAY-FDW': did you mean LAY-FWD or "),
        (Doubled, {"groups": ["config"]}, "Doubled claims none of the chosen groups:\n  config    lacks PeftConfig"),
        (None, {"names": {"LinearLora": Doubled}}, "unknown name 'LinearLora': did you mean LinearLoRA or "),
        (right, {"names": {"lora_linear": "lora_liner"}}, "unknown name in <module .*: .*lora_linear"),
    ],
)
def test_what_cannot_be_checked_is_one_clear_error(target: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        loraspec.check(target, **options)


USERS_TESTS = """
    import loraspec
    from deviating import declared, stale
    from unscaled import lora_linear

    @loraspec.parametrize(lora_linear, clauses=["LIN-FWD", "LIN-SHAPES"], dtypes=["float64", "float32"])
    def test_mine(clause):
        assert clause.sentence
        clause.check()

    @loraspec.parametrize(declared, clauses="LIN-FWD-SCALE")
    def test_declared(clause):
        clause.check()

    @loraspec.parametrize(stale, clauses="LIN-FWD-SCALE")
    def test_stale(clause):
        clause.check()
"""


def test_each_clause_is_a_test_of_a_users_file(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(textwrap.dedent(USERS_TESTS))
    ended = pytested(
        "-rA", "-p", "no:cacheprovider", "-W", "error", str(tmp_path), f"--rootdir={tmp_path}", cwd=TARGETS
    )
    said = ended.stdout
    assert ended.returncode == 1, said + ended.stderr
    for test in ("test_mine[LIN-FWD]", "test_stale[LIN-FWD-SCALE]"):
        assert re.search(rf"(?m)^FAILED .*test_mine\.py::{re.escape(test)}", said)
    assert "test_mine.py::test_declared[LIN-FWD-SCALE] - declared deviation: " in said
    assert "2 failed, 1 passed, 1 xfailed" in said
    assert "again    loraspec.check(lora_linear, clauses=['LIN-FWD'])" in said
    assert "it no longer fails: remove the declaration" in said


SHADOWED = """
    import sys

    import reference
    from conformance.helpers import VALUE

    def test_theirs(pytestconfig):
        assert VALUE == reference.VALUE == 42
        assert pytestconfig.pluginmanager.hasplugin("loraspec")
        assert not any("conformance" in sys.modules[name].__file__ for name in ("conformance", "reference"))  # ours
"""


@pytest.fixture
def shadowing(tmp_path: Path) -> Path:
    """A repository that has packages `conformance` and `reference` of its own."""
    folder = tmp_path / "theirs"
    for name, text in (("conformance/helpers.py", "VALUE = 42"), ("conformance/__init__.py", "")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "reference.py").write_text("VALUE = 42")
    (folder / "test_theirs.py").write_text(textwrap.dedent(SHADOWED).replace('conformance" in', 'loraspec" in'))
    (folder / "my_target.py").write_text((TARGETS / "right.py").read_text())
    return folder


def test_a_repository_with_packages_of_these_names_runs_pytest(shadowing: Path) -> None:
    ended = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", cwd=shadowing)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 passed" in ended.stdout


def test_the_command_runs_in_a_folder_that_shadows_its_packages(shadowing: Path) -> None:
    script = Path(sys.executable).with_name("loraspec")
    for command in ([str(script)], ["-m", "loraspec"]):
        ended = python(*command, "--version", cwd=shadowing, PYTHONPATH=str(shadowing))
        assert ended.stdout.startswith("loraspec 0."), ended.stderr
    words = ("run", "my_target", "--clause", "LIN-FWD", "--dtype", "float32", "--profile", "quick", "-n", "0")
    ended = python("-m", "loraspec", *words, cwd=shadowing)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ended = python("-m", "loraspec", "run", "reference", cwd=shadowing)
    assert ended.returncode == 2
    assert f"the package 'reference' is {shadowing / 'reference.py'}, which shadows this distribution's" in ended.stderr


def test_a_package_that_is_imported_already_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "conformance", ModuleType("conformance"))
    with pytest.raises(ImportError, match="the package 'conformance' is imported from no file, but loraspec needs its"):
        distribution.pin()
