"""Reproducers: exit 1 while the defect is there, 0 once it is gone, without the suite."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conformance import replay, repro
from conformance.clause import REGISTRY, load_all
from conformance.examine import Examination
from conformance.profiles import PROFILES
from conformance.target import Target
from tests.commands import TARGETS, python

load_all()
ALONE = """
import runpy, sys
for name in ("conformance", "reference", "optimized"):
    sys.modules[name] = None  # importing it is an error
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture
def at_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the small targets importable."""
    monkeypatch.setattr(sys, "path", [str(TARGETS), *sys.path])


def reproducer(target: str, clause: str, dtype: str, **fixed: object) -> str:
    """The script for the first failing case of a clause on a target."""
    declared = REGISTRY[clause]
    subject = Target.load(target).subjects(declared)[0]
    result = Examination(declared, subject, dtype, PROFILES["quick"]).run()
    assert result.status == "fail", result
    for name, value in fixed.items():
        result.case = " ".join(f"{name}={value}" if w.startswith(f"{name}=") else w for w in str(result.case).split())
    return repro.script(declared, subject, target, result)


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
    script.write_text(reproducer(target, clause, dtype))
    assert "conformance" not in script.read_text()
    broken = python("-c", ALONE, str(script), cwd=TARGETS)
    assert broken.returncode == 1
    assert "got" in broken.stdout, broken.stderr
    if right is None:
        text = (TARGETS / f"{target}.py").read_text()
        (tmp_path / f"{target}.py").write_text(text.replace("read.copy_(flat.reshape(g2.shape))", "read.copy_(g2)"))
    else:
        shutil.copy(TARGETS / f"{right}.py", tmp_path / f"{target}.py")
    fixed = python("-I", "-c", ALONE, str(script), cwd=tmp_path)
    assert (fixed.returncode, fixed.stdout) == (0, f"{clause}: this case is right\n"), fixed.stderr


@pytest.mark.usefixtures("at_targets")
def test_a_clause_of_several_calls_asks_the_suite(tmp_path: Path) -> None:
    text = reproducer("unscaled", "LIN-BWD-ACCUM", "float32")
    assert "pip install loraspec" in text
    (tmp_path / "repro.py").write_text(text)
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
def test_a_script_shows_the_defect_and_none_where_there_is_none(clause: str, dtype: str) -> None:
    text = reproducer("unscaled", clause, dtype)
    assert repro._shows_defect(text)
    assert not repro._shows_defect(text.replace("import unscaled as target", "import right as target"))


@pytest.mark.usefixtures("at_targets")
def test_a_large_case_stands_alone_too() -> None:
    text = reproducer("unscaled", "LIN-FWD", "float32", m=100, k=100, n=100)
    assert "base64.b64decode" in text
    assert "conformance" not in text


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3), (2, 0), (70, 70)])
def test_literals_are_exact(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal(shape)
    if values.size:
        values.reshape(-1)[0] = np.nan
    space: dict[str, object] = {}
    exec(f"import base64, torch\nnan, inf = float('nan'), float('inf')\nx = {repro._literal(values)}", space)
    read = space["x"]
    assert isinstance(read, torch.Tensor)
    assert read.dtype == torch.float64
    assert np.array_equal(read.numpy(), values, equal_nan=True)


def test_the_target_is_imported_by_the_name_it_was_given() -> None:
    lines = replay.importing("package.module:Kernels.fast")
    space: dict[str, object] = {}
    module = SimpleNamespace(Kernels=SimpleNamespace(fast="here"))
    sys.modules["package"], sys.modules["package.module"] = SimpleNamespace(module=module), module  # type: ignore[assignment]
    try:
        exec("\n".join(lines), space)
    finally:
        del sys.modules["package"], sys.modules["package.module"]
    assert space["target"] == "here"
