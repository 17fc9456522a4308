"""Checks written out as scripts: every clause's runs without the suite, and says what the suite says."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import pkgutil
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import reference
from conformance.clause import GROUPS, Clause, load_all
from conformance.clause import REGISTRY as CLAUSES
from conformance.examine import Examination, check_case
from conformance.judge import Inconclusive, Refused, Violation
from conformance.profiles import PROFILES
from conformance.replay import replay
from conformance.result import ANY_DTYPE, Result
from conformance.subject import Subject
from conformance.target import Target
from conformance.targets import concrete
from tests import known_bad
from tests.commands import WITHOUT_SUITE, python
from tests.known_bad import REGISTRY, KnownBad

load_all()
for module in pkgutil.iter_modules(known_bad.__path__):
    importlib.import_module(f"tests.known_bad.{module.name}")
IMPORT = re.compile(r"^ *(?:import|from) (\w+)[\w.]*(?: import .*| as \w+)?(?:  # .*)?$", re.MULTILINE)
UNSHRUNK = dataclasses.replace(PROFILES["quick"], shrinks=0)  # for the group of which each attempt starts processes
SLOW = "LAY-COMPILE"  # as LIN-COMPILE, and torch.compile takes seconds
# Runs each script of a folder as a program would be, one after the other in one process.
EVERY = """
import contextlib, io, json, pathlib, runpy, sys, traceback
said = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as ended:
        said[path.stem] = [ended.code, out.getvalue()]
    except BaseException:
        said[path.stem] = [None, traceback.format_exc()]
print(json.dumps(said))
"""


def conclusive(clause: Clause, subject: Subject) -> Result:
    """The clause's first case that decides something, as the result whose script is asked for."""
    dtype = (clause.dtypes or (ANY_DTYPE,))[0]
    fixed = {} if dtype == ANY_DTYPE else {"dtype": dtype}
    for index in itertools.count():
        case = clause.cases.draw(0, clause.id, index, **fixed)
        try:
            check_case(clause, subject, case)
        except Inconclusive:
            continue
        return Result(clause.id, subject.name, dtype, case=str(case), message="nothing")
    raise AssertionError


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a right target, and one with the script of every clause for it."""
    folder = tmp_path_factory.mktemp("every")
    shutil.copytree(Path(reference.__file__).parent, folder / "right_target")
    (folder / "right_backend.py").write_text(Path(concrete.__file__).read_text().replace("reference", "right_target"))
    (folder / "scripts").mkdir()
    targets = {"right_target": Target.of(reference), "right_backend": Target.of(concrete)}
    for clause in CLAUSES.values():
        if clause.id != SLOW:
            name = next(name for name, target in targets.items() if not target.lacking(clause))
            subject = targets[name].subjects(clause)[0]
            text = replay(clause, subject, name, conclusive(clause, subject), clause.id)
            (folder / "scripts" / f"{clause.id}.py").write_text(text)
    return folder


def test_every_clause_is_right_on_a_right_target_without_the_suite(scripts: Path) -> None:
    ended = python("-W", "error", "-c", EVERY, "scripts", cwd=scripts, PYTHONPATH=str(WITHOUT_SUITE))
    said = json.loads(ended.stdout)
    assert set(said) == set(CLAUSES) - {SLOW}
    wrong = {name: outcome for name, outcome in said.items() if outcome != [0, f"{name}: this case is right\n"]}
    assert not wrong, "\n\n".join(f"{name}: {outcome[1]}" for name, outcome in wrong.items())
    imported = {name for path in (scripts / "scripts").iterdir() for name in IMPORT.findall(path.read_text())}
    assert imported - sys.stdlib_module_names == {"numpy", "right_backend", "right_target", "torch"}


def sampled(group: str, count: int = 5) -> list[KnownBad]:
    """So many known-bad twins of a group's clauses, spread over all of them."""
    twins = sorted((bad for bad in REGISTRY.values() if CLAUSES[bad.clause].group == group), key=lambda bad: bad.name)
    return twins[:: max(1, len(twins) // count)][:count]


def first_failure(bad: KnownBad) -> tuple[Subject, Result]:
    """What the twin's own clause says of it, and of which subject."""
    clause, target = CLAUSES[bad.clause], Target.of(bad.target, bad.name)
    dtypes = [d for d in clause.dtypes if d in bad.dtypes] or list(clause.dtypes[:1]) or [ANY_DTYPE]
    for subject, dtype in itertools.product(target.subjects(clause), dtypes):
        start_anew(bad)
        profile = UNSHRUNK if clause.group == "distributed" else PROFILES["quick"]
        result = Examination(clause, subject, dtype, profile).run()
        if result.status == "fail":
            return subject, result
    raise AssertionError(f"{bad.name} passes")


def start_anew(bad: KnownBad) -> None:
    """Have a twin that keeps state begin again."""
    getattr(bad.target, "reset", lambda: None)()


@pytest.mark.parametrize("bad", [b for g in GROUPS for b in sampled(g)], ids=lambda bad: bad.name)
def test_a_script_says_of_a_known_bad_twin_what_the_suite_says(
    bad: KnownBad, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clause = CLAUSES[bad.clause]
    monkeypatch.setenv("LORASPEC_RANK_SECONDS", "3" if "not ended within" in bad.says else "60")
    subject, result = first_failure(bad)
    start_anew(bad)
    with pytest.raises((Violation, Refused)) as caught:
        check_case(clause, subject, clause.cases.case_type.parse(result.case or ""))
    monkeypatch.setitem(sys.modules, "twin", bad.target)
    monkeypatch.setattr(sys, "path", [*sys.path])
    script = ModuleType("script")
    monkeypatch.setitem(sys.modules, "script", script)  # where dataclasses and pickle look for its classes
    exec(replay(clause, subject, "twin", result, clause.id), vars(script))
    start_anew(bad)
    assert script.main() == 1
    assert capsys.readouterr().out == f"{clause.id}: {caught.value}\n"


@pytest.mark.parametrize(
    ("clause", "small", "large"),
    [
        ("LIN-BWD-ACCUM", "m=2 k=3 n=2 r=1 values=normal", "m=20 k=30 n=20 r=3 values=normal"),
        ("DORA-INIT", "m=2 k=3 n=2 r=1 values=normal", "m=20 k=30 n=20 r=3 values=normal"),
        ("GRN-CLIP", "elements=3", "elements=3000"),
    ],
)
def test_a_small_case_is_held_as_numbers_and_a_large_one_is_drawn(clause: str, small: str, large: str) -> None:
    declared = CLAUSES[clause]
    subject = Target.of(reference).subjects(declared)[0]
    texts = [
        replay(declared, subject, "reference", Result(clause, subject.name, "float32", case=case), clause)
        for case in (small, large)
    ]
    assert ["DRAWN = {" in text for text in texts] == [True, False]


def test_a_script_of_the_interpreter_lane_turns_the_interpreter_on_before_torch_is_imported() -> None:
    clause = CLAUSES["LAY-STATE"]
    subject = dataclasses.replace(Target.of(reference).subjects(clause)[1], lane="interpreter")
    text = replay(clause, subject, "reference", Result(clause.id, subject.name, "float32", case="defaults"), clause.id)
    on = text.index('os.environ["TRITON_INTERPRET"] = "1"')
    assert on < text.index("import torch") < text.index("import reference as target")
    assert f'Subject("{subject.name}", target.{subject.name}, target, "cpu", "interpreter", ' in text
