"""CONTRIBUTING.md: its commands are run in a copy of the project, after the changes that the page describes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.page_reader import BLOCK, Reader
from tests.support.preloaded_process import import_paths

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
MOST = 10  # lines of text of a recipe, besides its commands
CLAUSE = '''"""Operands of `lora_linear` by name."""

from __future__ import annotations

from typing import Any

from conformance.cases.linear_case import LinearCase
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.clauses.linear_and_layer.judged_results import oracle_for
from conformance.judgement.judge import judge
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject


@clause("{id}", sentence="Operands may be passed by name.", cases=SMALL, subjects=("lora_linear",), dtypes=("float32",))
def test_keywords(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    named: dict[str, Any] = {{"bias": None, **subject.build(operands).tensors}}
    with calling("lora_linear(x=…, weight=…)"):
        y = subject.thing(**named, scale=operands.scale)
    return judge(y, oracle_for(subject, operands).y)
'''
TWIN = '''"""Known-bad twins of keywords: parameters of other names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.baselines.linear import Right
from tests.known_bad import breaks


@breaks("{id}", says="raised TypeError")
class NamesItsInput(Right):
    def lora_linear(self, input: Tensor, *args: Any, **options: Any) -> Tensor:
        return super().lora_linear(input, *args, **options)
'''
GROUP = '''"""A group for the test of CONTRIBUTING.md."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="TOY",
    place=150,
    judged="operands by name",
    names="`lora_linear`",
    required=("lora_linear",),
    subjects=("lora_linear",),
)
'''
FILES = {
    "Add a clause with its twin": {
        "conformance/clauses/linear/keywords.py": CLAUSE.format(id="LIN-KEYWORDS"),
        "tests/known_bad/linear/keywords.py": TWIN.format(id="LIN-KEYWORDS"),
    },
    "Add a group": {
        "conformance/clauses/toy/__init__.py": GROUP,
        "conformance/clauses/toy/keywords.py": CLAUSE.format(id="TOY-KEYWORDS"),
        "tests/known_bad/toy/__init__.py": '"""Known-bad twins of group `toy`."""\n',
        "tests/known_bad/toy/keywords.py": TWIN.format(id="TOY-KEYWORDS"),
    },
    "Add an operation to the lives of a layer": {},  # tests/test_life.py adds one
    "Add a dtype": {},
    "Add a target": {},
    "Add a golden adapter": {},
}
SECTIONS = dict(re.findall(r"(?ms)^## (Add .*?)\n(.*?)(?=^## )", PAGE))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project."""
    folder = tmp_path_factory.mktemp("project")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_each_recipe_is_short() -> None:
    assert list(SECTIONS) == list(FILES)
    for name, text in SECTIONS.items():
        lines = [line for line in BLOCK.sub("", text).splitlines() if line.strip()]
        assert len(lines) < MOST, f"{name} takes {len(lines)} lines: expected fewer than {MOST}"


@pytest.mark.long
@pytest.mark.parametrize("recipe", FILES)
def test_the_commands_of_a_recipe_work(project: Path, recipe: str) -> None:
    path = os.pathsep.join(map(str, import_paths(project)))
    reader = Reader(project, project, PYTHONPATH=path, PYTEST_ADDOPTS="-p no:cacheprovider")
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    for name, text in FILES[recipe].items():
        reader.write(name, text)
    printed = ""
    try:
        for _, _, commands in BLOCK.findall(SECTIONS[recipe]):
            for command in re.findall(r"(?m)^\$ (.*)", commands):
                printed = reader.run(command)
                assert reader.status == 0, f"{command}\n{printed}"
        if recipe == "Add a clause with its twin":
            places = r"checked in (\S+):\d+\ntwins in\n +(\S+):\d+"
            assert re.findall(places, printed) == [tuple(FILES[recipe])]
            recorded = (project / "tests" / "known_bad" / "recorded.json").read_text()
            assert '"LIN-KEYWORDS__NamesItsInput": ["LIN-KEYWORDS"' in recorded
        if recipe == "Add a group":
            assert "TOY-KEYWORDS" in (project / "conformance" / "SPEC.md").read_text(encoding="utf-8")
            assert "PASS reference: 1 clauses pass" in printed
    finally:  # the next recipe begins with the project as it is
        for path in [path for path in project.rglob("*") if path.is_file() and path not in before]:
            path.unlink()
        for path, content in before.items():
            if path.read_bytes() != content:
                path.write_bytes(content)
        shutil.rmtree(project / "conformance" / "clauses" / "toy", ignore_errors=True)
