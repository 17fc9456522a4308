"""The suite's verdict on one mutant; it is found in a fork of a process that has loaded torch and the suite."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from conformance.judgement.result import ANY_DTYPE
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES, Profile
from conformance.specification.clause import Clause, load_all
from conformance.specification.groups import groups
from conformance.target.target import TRITON, Target
from tests.campaigns.mutation import judging_groups, own_tests
from tests.campaigns.mutation.mutants import PACKAGES, Mutant, write_copy
from tests.campaigns.mutation.reach import OTHER_PROCESSES, Reach, clauses_of
from tests.campaigns.mutation.reached_tests import ReachedTests
from tests.campaigns.mutation.summary import STAGES
from tests.campaigns.variants.catalogue import NOT_DONE

LIMIT = 600  # CPU seconds after which an undecided mutant counts as hung
IDLE_LIMIT = 10 * LIMIT  # wall-clock seconds, for a mutant that waits for ever without using the CPU
# torch.compile takes seconds for each mutant and detects the same defects as the plain call.
SLOW = ("LIN-COMPILE", "LAY-COMPILE", "FUS-COMPILE")
FIRST = Profile("first", volume=1, interpreted=1, shrinks=0)
QUICK = Profile("quick", PROFILES["quick"].volume, PROFILES["quick"].interpreted, shrinks=0)
# These files run partly with interpreted kernels and partly without.
BOTH_WAYS = ("quantization", "integers", "activations")


@dataclass(frozen=True)
class Part:
    """A target, the value of TRITON_INTERPRET with which it runs, and the clauses that judge it."""

    module: str
    interpreting: str
    clauses: list[Clause]


@dataclass(frozen=True)
class Verdict:
    """The fate of a mutant.

    Attributes:
        status: `killed` by a clause, `crashed` or `hung` (both count as detected), `survived`, or `undecided`.
        clause: the first clause that failed, or the project's own test; `import` if the package no longer imports.
        seconds: CPU time of the verdict; other load on the machine does not change it.
    """

    mutant: str
    status: str
    clause: str = ""
    message: str = ""
    seconds: float = 0.0


def verdict(
    mutant: Mutant, reach: Reach | None = None, reached: ReachedTests | None = None, stages: tuple[str, ...] = STAGES
) -> Verdict:
    """Judge a mutant until a clause of its file fails, or else one of the project's own tests.

    Args:
        reach, reached: leave out the clauses and the tests that cannot fail.   stages: those of `STAGES` to judge by.
    """
    plan = _plan(mutant, reach)
    modules = {part.module for part in plan}
    tests = reached.of(mutant) if reached and "tests" in stages else own_tests.tests_of(mutant.file)
    profiles = [profile for profile in (FIRST, QUICK) if profile.name in stages]

    def judged(folder: Path) -> dict[str, str] | None:
        if found := _first_failure(mutant, plan, profiles):
            return found
        if "tests" not in stages:
            return {"status": "undecided"}
        return own_tests.first_failure(folder, tests) if tests else None

    found, died, seconds = _in_fork(mutant, judged, modules)
    if found is None:
        return Verdict(mutant.id, "hung" if died == "timeout" else "crashed", message=died, seconds=seconds)
    if own_tests.is_test(found.get("clause", "")):
        _check_right(found["clause"])
    return Verdict(mutant.id, seconds=seconds, **found)


@functools.cache
def _check_right(test: str) -> None:
    """Raise if a test fails with a copy of the unedited packages too, so that it shows nothing about a mutant."""
    found, died, _ = _in_fork(None, lambda folder: own_tests.first_failure(folder, (test,)), set())
    if found is None or found["status"] != "survived":
        raise RuntimeError(f"{test} fails on a copy of the unedited packages: {(found or {}).get('message', died)}")


def _in_fork(
    mutant: Mutant | None, judge: Callable[[Path], dict[str, str] | None], modules: set[str]
) -> tuple[dict[str, str] | None, str, float]:
    """Judge a copy of the packages in a fork; return what was found (None if it died), how it ended, CPU seconds.

    Args:
        mutant: edits the copy.   modules: those of targets, to import anew.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        write_copy(Path(folder), mutant)
        out = Path(folder) / "verdict.json"
        child = os.fork()
        if child == 0:
            _in_child(Path(folder), judge, modules, out)
        died, seconds = _waited(child)
        return json.loads(out.read_text()) if out.exists() else None, died, seconds


def _plan(mutant: Mutant, reach: Reach | None) -> list[Part]:
    """The clauses of the file's groups that run the mutant's line; if none does, those of any group."""
    ways = ("0", "1") if Path(mutant.file).stem in BOTH_WAYS else (os.environ["TRITON_INTERPRET"],)

    def planned(asked: tuple[str, ...]) -> Iterator[Part]:
        for module, way in itertools.product(judging_groups.targets_of(mutant.file), ways):
            claimed = tuple(group for group in asked if group in _claimed(module))
            # what the unedited module does not pass shows nothing about an edit
            without = (*SLOW, *NOT_DONE.get(module, ()))
            reached = reach.clauses(mutant, module, claimed, way) if reach else clauses_of(claimed, ())
            clauses = [clause for clause in reached if clause.id not in without]
            if clauses:
                yield Part(module, way, clauses)

    likely = judging_groups.groups_of(mutant.file)
    return list(planned(likely)) or list(planned(tuple(g for g in groups() if g not in (*likely, *OTHER_PROCESSES))))


@functools.cache
def _claimed(module: str) -> tuple[str, ...]:
    return tuple(Target.of(importlib.import_module(module)).claimed)


def _waited(child: int) -> tuple[str, float]:
    """Wait for a child; return how it ended and its CPU time in seconds."""
    deadline = time.monotonic() + IDLE_LIMIT
    late = False
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            seconds = round(used.ru_utime + used.ru_stime, 2)
            code = os.waitstatus_to_exitcode(status)
            return "timeout" if late or code == -signal.SIGXCPU else f"exit status {code}", seconds
        if not late and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            late = True
        time.sleep(0.02)


def _in_child(folder: Path, judge: Callable[[Path], dict[str, str] | None], modules: set[str], out: Path) -> None:
    """Import the copied packages in place of the real ones, judge them and end the process."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, resource.RLIM_INFINITY))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    try:
        sys.path.insert(0, str(folder))
        # a target of another package has names of the real one
        for name in [n for n in sys.modules if n.partition(".")[0] in PACKAGES or n in modules]:
            del sys.modules[name]
        importlib.invalidate_caches()
        found = judge(folder) or {"status": "survived"}
        out.with_suffix(".part").write_text(json.dumps(found))
        out.with_suffix(".part").rename(out)
    finally:
        os._exit(0)


def _first_failure(mutant: Mutant, plan: list[Part], profiles: list[Profile]) -> dict[str, str] | None:
    for profile, part in itertools.product(profiles, plan):
        os.environ["TRITON_INTERPRET"] = part.interpreting
        try:
            target = Target.of(importlib.import_module(part.module))
        except BaseException as error:  # noqa: BLE001  (a mutant may raise anything)
            return {"status": "killed", "clause": "import", "message": f"{type(error).__name__}: {error}"[:300]}
        if missing := {clause.group for clause in part.clauses} - set(target.claimed):
            return {"status": "killed", "clause": "import", "message": f"no longer claims {sorted(missing)}"}
        for clause, subject, dtype in _trials(target, mutant, part.clauses, profile):
            result = Examination(clause, subject, dtype, profile).run()
            if result.status != "pass":
                return {"status": "killed", "clause": clause.id, "message": (result.message or "")[:300]}
    return None


def _trials(
    target: Target, mutant: Mutant, clauses: list[Clause], profile: Profile
) -> Iterator[tuple[Clause, Any, str]]:
    """Yield each clause with its subjects and dtypes, for a first case with one dtype."""
    in_kernels = "/kernels/" in mutant.file
    for clause in clauses:
        dtypes = clause.dtypes or (ANY_DTYPE,)
        chosen = dtypes if profile is QUICK else [d for d in dtypes if d in ("float32", ANY_DTYPE)] or dtypes[:1]
        for subject, dtype in itertools.product(target.subjects(clause), chosen):
            if not in_kernels or clause.group not in ("linear", "layer") or subject.name in TRITON:
                yield clause, subject, dtype


def prepare() -> None:
    """Load once the modules that every mutant needs; use one thread, since a fork keeps only one."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    torch.set_num_threads(1)
    load_all()
    for heavy in ("triton", "triton.language", "transformers.pytorch_utils", "torch._dynamo"):
        importlib.import_module(heavy)
