"""Reproducers run without the suite: they exit 1 while the defect exists and 0 after it is fixed."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conformance.reproducer import call_script, check_script
from conformance.reproducer.literals import tensor_literal
from conformance.reproducer.reduction import DEFECT, RIGHT, said
from conformance.reproducer.reproducer import script as script_for
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import REGISTRY, load_all
from conformance.target.target import Target
from tests.support.commands import TARGETS, WITHOUT_SUITE, loraspec, python

load_all()
ALONE = """
import runpy, sys
for name in ("conformance", "reference", "optimized"):
    sys.modules[name] = None  # importing it is an error
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture
def at_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the small targets importable."""
    monkeypatch.setattr(sys, "path", [str(TARGETS), *sys.path])


def script_of(target: str, clause: str, dtype: str, **fixed: object) -> str:
    """The script for the first failing case of a clause on a target."""
    declared = REGISTRY[clause]
    subject = Target.load(target).subjects(declared)[0]
    result = Examination(declared, subject, dtype, PROFILES["quick"]).run()
    assert result.status == "fail", result
    for name, value in fixed.items():
        result.case = " ".join(f"{name}={value}" if w.startswith(f"{name}=") else w for w in str(result.case).split())
    text = script_for(declared, subject, target, result)
    assert text is not None
    return text


@pytest.mark.parametrize(
    ("target", "right", "clause", "dtype"),
    [
        ("unscaled", "right", "LIN-FWD", "float32"),
        ("layered", None, "LAY-BWD-LAYOUT", "float32"),
    ],
)
@pytest.mark.usefixtures("at_targets")
def test_a_script_fails_until_the_defect_is_gone(
    target: str, right: str | None, clause: str, dtype: str, tmp_path: Path
) -> None:
    script = tmp_path / "repro.py"
    script.write_text(script_of(target, clause, dtype))
    assert "conformance" not in script.read_text()
    broken = python("-c", ALONE, str(script), cwd=TARGETS)
    assert broken.returncode == 1
    assert f"{clause}: " in broken.stderr
    assert ": got " in broken.stderr, broken.stderr
    if right is None:
        text = (TARGETS / f"{target}.py").read_text()
        (tmp_path / f"{target}.py").write_text(text.replace("read.copy_(flat.reshape(g2.shape))", "read.copy_(g2)"))
    else:
        shutil.copy(TARGETS / f"{right}.py", tmp_path / f"{target}.py")
    fixed = python("-I", "-c", ALONE, str(script), cwd=tmp_path)
    assert (fixed.returncode, fixed.stdout) == (0, f"{clause}: this case is right\n"), fixed.stderr


LAYER = """
from torch import nn

CONFORMANCE = {"dtypes": ["float32"]}


class LinearLoRA(nn.Linear):
    def __init__(self, orig_linear, dim=8, alpha=32, dropout=0.0, dropout_position="post",
                 lora_A_init_method="xavier", lora_dtype=None):
        super().__init__(orig_linear.in_features, orig_linear.out_features, device="meta")
        self.weight, self.bias = orig_linear.weight, orig_linear.bias
        self.lora_A = nn.Linear(self.in_features, dim, bias=False)
        self.lora_B = nn.Linear(dim, self.out_features, bias=False)
        self.scale = alpha / dim

    def forward(self, x):
        return super().forward(x) + self.lora_B(self.lora_A(x)) * self.scale

    def __deepcopy__(self, memo):
        return self
"""
CONFIG = """
import copy
from dataclasses import dataclass, field


@dataclass
class PeftConfig:
    target_modules: list = field(default_factory=list)
    exclude_modules: list = field(default_factory=list)
    match_all_linear: bool = False
    dim: int = 8
    alpha: float = 32
    dropout: float = 0.0
    dropout_position: str = "post"
    lora_A_init: str = "xavier"
    lora_dtype: object = None
    use_triton: bool = False

    def to_dict(self):
        return dict(vars(self))

    @classmethod
    def from_dict(cls, d):
        return cls(**d)
"""


@pytest.mark.parametrize(
    ("text", "broken", "fixed", "clause", "says"),
    [
        (LAYER, "    def __deepcopy__(self, memo):\n        return self\n", "", "LAY-COPY", "the copy's lora_A"),
        (CONFIG, "dict(vars(self))", "copy.deepcopy(vars(self))", "CFG-OWN-DICT", "changed the config"),
    ],
)
def test_a_written_script_runs_without_the_suite_until_the_defect_is_gone(
    text: str, broken: str, fixed: str, clause: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(text)
    ended = loraspec("run", "mine", "--clause", clause, "--profile", "quick", cwd=tmp_path)
    assert ended.returncode == 1, ended.stderr
    path = tmp_path / "loraspec-report" / f"repro_{clause}.py"
    assert f"{path.relative_to(tmp_path)} runs without the suite" in ended.stdout

    def alone() -> tuple[int, str]:
        run = python(str(path), cwd=tmp_path, PYTHONPATH=str(WITHOUT_SUITE))
        return run.returncode, run.stdout + run.stderr

    code, told = alone()
    assert (code, says in told) == (1, True), told
    (tmp_path / "mine.py").write_text(text.replace(broken, fixed))
    assert alone() == (0, f"{clause}: this case is right\n")
    assert python("-c", "import conformance", cwd=tmp_path, PYTHONPATH=str(WITHOUT_SUITE)).returncode == 1


@pytest.mark.usefixtures("at_targets")
def test_a_script_for_a_check_without_source_calls_the_suite(tmp_path: Path) -> None:
    made: dict[str, Any] = {"check": REGISTRY["LIN-BWD-ACCUM"].check}
    exec("def again(subject, case):\n    return check(subject, case)", made)
    declared = dataclasses.replace(REGISTRY["LIN-BWD-ACCUM"], check=made["again"])
    subject = Target.load("unscaled").subjects(declared)[0]
    result = Examination(declared, subject, "float32", PROFILES["quick"]).run()
    (tmp_path / "repro.py").write_text(script_for(declared, subject, "unscaled", result) or "")
    ended = python(str(tmp_path / "repro.py"), cwd=TARGETS)
    assert ended.returncode == 1, ended.stderr
    assert "FAIL LIN-BWD-ACCUM unscaled" in ended.stdout


@pytest.mark.parametrize(
    ("clause", "dtype"),
    [
        ("LIN-BWD-DX", "bfloat16"),
        ("LIN-FWD-MIXED", "float16"),
        ("LIN-BWD-LAYOUT", "float64"),
        ("LIN-FWD-LEAD", "float32"),
    ],
)
@pytest.mark.usefixtures("at_targets")
def test_a_script_shows_a_defect_only_on_the_defective_target(clause: str, dtype: str) -> None:
    text = script_of("unscaled", clause, dtype)
    assert "from unscaled import lora_linear" in text
    assert said(text, clause).kind == DEFECT
    assert said(text.replace("from unscaled import", "from right import"), clause).kind == RIGHT


@pytest.mark.usefixtures("at_targets")
def test_a_script_for_a_large_case_needs_no_suite(tmp_path: Path) -> None:
    text = script_of("unscaled", "LIN-FWD", "float32", m=100, k=100, n=100)
    assert "def main() -> int:" in text  # it has the check's own code, since its tensors are too large for literals
    (tmp_path / "repro.py").write_text(text)
    ended = python("-c", ALONE, str(tmp_path / "repro.py"), cwd=TARGETS)
    assert (ended.returncode, ended.stdout.startswith("LIN-FWD: ")) == (1, True), ended.stderr


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3), (2, 0)])
def test_literals_are_exact(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values.reshape(-1)[:1] = torch.nan
    read = eval(tensor_literal(values), {"torch": torch})
    assert read.dtype == torch.float64
    assert read.shape == values.shape
    assert torch.equal(read.nan_to_num(7.0), values.nan_to_num(7.0))


def test_a_script_imports_the_target_by_its_given_name() -> None:
    lines = check_script.importing("package.module:Kernels.fast")
    space: dict[str, object] = {}
    module = SimpleNamespace(Kernels=SimpleNamespace(fast="here"))
    sys.modules["package"], sys.modules["package.module"] = SimpleNamespace(module=module), module  # type: ignore[assignment]
    try:
        exec("\n".join(lines), space)
    finally:
        del sys.modules["package"], sys.modules["package.module"]
    assert space["target"] == "here"


def test_a_script_that_ends_inside_an_autocast_region_leaves_it() -> None:
    entered = 'import torch\ntorch.autocast("cpu", dtype=torch.bfloat16).__enter__()\n'
    for run in (lambda: said(entered, "title"), lambda: call_script._shows_defect(f"{entered}wrong = str")):
        run()
        assert not torch.is_autocast_enabled("cpu")
        assert (torch.autocast_increment_nesting(), torch.autocast_decrement_nesting()) == (1, 0)
