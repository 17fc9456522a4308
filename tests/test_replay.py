"""Checks written out as scripts: each clause's script runs without the suite and gives the suite's result."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import reference
from conformance.cases.case import Case
from conformance.judgement.outcomes import Refused, Violation
from conformance.judgement.result import ANY_DTYPE, Result
from conformance.reproducer.check_script import replay
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import Clause
from conformance.specification.groups import groups
from conformance.target.check_case import check_case
from conformance.target.subject import Subject
from conformance.target.target import Target
from conformance.targets import concrete
from tests.campaigns.variants.catalogue import NOT_DONE
from tests.support.commands import WITHOUT_SUITE, python
from tests.support.twins import CLAUSES, REGISTRY, KnownBad, pairs, reset
from tests.targets import middle

PORT = r"(?<=127\.0\.0\.1):[0-9]+|(?<=the server):[0-9]+"  # each run has a server on another port
IMPORT = re.compile(r"^ *(?:import|from) (\w+)[\w.]*(?: import .*| as \w+)?(?:  # .*)?$", re.MULTILINE)
# profiles for a case as drawn, whose numbers the script draws again, and for a small case, whose numbers it contains
AS_DRAWN, SMALLER = (dataclasses.replace(PROFILES["quick"], shrinks=shrinks) for shrinks in (0, 40))
SLOWLY_SHRUNK = ("distributed", "remote")  # each shrinking attempt starts processes or a server
# Groups whose failures often keep the check's own code. Of the others, which seldom do, each fourth clause is tried,
# and of `remote`, whose scripts differ little and start a server each.
OFTEN = ("checkpoint", "training", "fhe", "distributed")
OF_CALLS = "life"  # its scripts are the operations of a life; test_life and its like run them
SLOW = {"LAY-COMPILE", "FHE-EXECUTE-NOISE"}  # they take many seconds; LIN-COMPILE and FHE-BACKEND-NOISE cover them
UNDECIDED = "%s: this case no longer decides anything: "
# Runs each script in a folder as __main__, one after the other in one process.
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


def numbered(clause: Clause, number: int) -> Case:
    """A case of a clause in its first dtype; a case with ranks has two of them, because each rank is a process."""
    space = clause.cases
    if "world" in space.values:
        space = space.narrowed(world=[world for world in space.values["world"] if world == 2] or space.values["world"])
    return space.draw(0, clause.id, number, strength=1, **({"dtype": clause.dtypes[0]} if clause.dtypes else {}))


@cache
def right_targets() -> dict[str, Target]:
    """The right targets by the names of their modules in scripts."""
    right = {"right_target": reference, "right_backend": concrete, "right_middle": middle}
    return {name: Target.of(thing) for name, thing in right.items()}


def right_for(clause: Clause) -> Iterator[str]:
    """The right targets that claim a clause; none follows every convention."""
    return (name for name, target in right_targets().items() if target.subjects(clause))


def write_scripts(folder: Path, clauses: set[str], number: int) -> None:
    """Write the script of each clause for a right target and its case with this number."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for clause in map(CLAUSES.__getitem__, sorted(clauses)):
        name = next(right_for(clause))
        subject, case = right_targets()[name].subjects(clause)[0], numbered(clause, number)
        result = Result(clause.id, subject.name, (clause.dtypes or (ANY_DTYPE,))[0], case=str(case), message="nothing")
        (folder / f"{clause.id}.py").write_text(replay(clause, subject, name, result, clause.id))


@pytest.mark.long
def test_a_right_target_is_right_by_scripts_with_the_checks_own_code(tmp_path: Path) -> None:
    shutil.copytree(Path(reference.__file__).parent, tmp_path / "right_target")
    (tmp_path / "right_backend.py").write_text(Path(concrete.__file__).read_text().replace("reference", "right_target"))
    shutil.copy(middle.__file__, tmp_path / "right_middle.py")
    chosen = {name for n, name in enumerate(CLAUSES) if n % 4 == 0 or CLAUSES[name].group in OFTEN}
    chosen |= {name for name, clause in CLAUSES.items() if clause.position == "mid"}  # for its target
    chosen -= {name for name in chosen if CLAUSES[name].convention and not any(right_for(CLAUSES[name]))}
    left = {name for name in chosen if CLAUSES[name].group != OF_CALLS} - {*SLOW, *NOT_DONE["reference"]}
    imported, number = set(), 0
    while left:  # a case may be inconclusive: then the next one is tried
        assert number < 8, f"no case of {sorted(left)} decides anything"
        write_scripts(tmp_path / "scripts", left, number)
        imported |= {n for path in (tmp_path / "scripts").iterdir() for n in IMPORT.findall(path.read_text())}
        ended = python("-W", "error", "-c", EVERY, "scripts", cwd=tmp_path, PYTHONPATH=str(WITHOUT_SUITE))
        said = json.loads(ended.stdout)
        assert set(said) == left
        left = {name for name, (code, text) in said.items() if (code, text.startswith(UNDECIDED % name)) == (0, True)}
        right = {name: [0, f"{name}: this case is right\n"] for name in said}
        wrong = {name: said[name] for name in said if name not in left and said[name] != right[name]}
        assert not wrong, "\n\n".join(f"{name}: {outcome[1]}" for name, outcome in wrong.items())
        number += 1
    assert imported - sys.stdlib_module_names == {"numpy", "right_backend", "right_middle", "right_target", "torch"}


def sampled(group: str) -> list[KnownBad]:
    """A few known-bad twins spread over a group, without those whose scripts wait for a minute."""
    count = 3 if group in SLOWLY_SHRUNK else 5
    of_group = (bad for bad in REGISTRY.values() if CLAUSES[bad.clause].group == group)
    twins = sorted((bad for bad in of_group if "does not end within" not in bad.says), key=lambda bad: bad.name)
    return twins[:: max(1, len(twins) // count)][:count]


def first_failure(bad: KnownBad) -> tuple[Subject, Result]:
    """The first subject on which the twin fails its own clause, and the result."""
    clause, target = CLAUSES[bad.clause], Target.of(bad.target, bad.name)
    is_smaller = bad in sampled(clause.group)[:2] and clause.group not in SLOWLY_SHRUNK
    for subject, dtype in pairs(bad, target, clause):
        reset(bad)
        result = Examination(clause, subject, dtype, SMALLER if is_smaller else AS_DRAWN).run()
        if result.status == "fail":
            return subject, result
    raise AssertionError(f"{bad.name} passes")


@pytest.mark.parametrize("bad", [b for g in groups() if g != OF_CALLS for b in sampled(g)], ids=lambda bad: bad.name)
def test_a_script_says_of_a_known_bad_twin_what_the_suite_says(
    bad: KnownBad, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clause = CLAUSES[bad.clause]
    monkeypatch.setenv("LORASPEC_RANK_SECONDS", "3" if "not ended within" in bad.says else "60")
    subject, result = first_failure(bad)
    reset(bad)
    with pytest.raises((Violation, Refused)) as caught:
        check_case(clause, subject, clause.cases.case_type.parse(result.case or ""))
    monkeypatch.setitem(sys.modules, "twin", bad.target)
    monkeypatch.setattr(sys, "path", [*sys.path])
    script = ModuleType("script")
    monkeypatch.setitem(sys.modules, "script", script)  # dataclasses and pickle look up classes there
    exec(replay(clause, subject, "twin", result, clause.id), vars(script))
    reset(bad)
    assert script.main() == 1
    said, expected = capsys.readouterr().out, f"{clause.id}: {caught.value}\n"
    assert re.sub(PORT, "", said) == re.sub(PORT, "", expected)


@pytest.mark.parametrize(
    ("clause", "small", "large"),
    [
        ("LIN-BWD-ACCUM", "m=2 k=3 n=2 r=1 values=normal", "m=20 k=30 n=20 r=3 values=normal"),
        ("DORA-INIT", "m=2 k=3 n=2 r=1 values=normal", "m=20 k=30 n=20 r=3 values=normal"),
        ("GRN-CLIP", "elements=3", "elements=3000"),
    ],
)
def test_a_script_contains_the_numbers_of_a_small_case_and_draws_a_large_one(
    clause: str, small: str, large: str
) -> None:
    declared = CLAUSES[clause]
    subject = Target.of(reference).subjects(declared)[0]
    texts = [
        replay(declared, subject, "reference", Result(clause, subject.name, "float32", case=case), clause)
        for case in (small, large)
    ]
    assert ["DRAWN = {" in text for text in texts] == [True, False]


def test_an_interpreter_lane_script_sets_triton_interpret_before_it_imports_torch() -> None:
    clause = CLAUSES["LAY-STATE"]
    subject = dataclasses.replace(Target.of(reference).subjects(clause)[1], lane="interpreter")
    text = replay(clause, subject, "reference", Result(clause.id, subject.name, "float32", case="defaults"), clause.id)
    on = text.index('os.environ["TRITON_INTERPRET"] = "1"')
    assert on < text.index("import torch") < text.index("import reference as target")
    assert f'Subject("{subject.name}", target.{subject.name}, target, "cpu", "interpreter", ' in text
