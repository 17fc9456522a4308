"""Every known-bad twin fails its clause with the expected message, and just the clauses recorded for it."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import pkgutil
from pathlib import Path

import pytest

from conformance.clause import REGISTRY as CLAUSES
from conformance.clause import load_all
from conformance.examine import Examination
from conformance.profiles import PROFILES
from conformance.result import ANY_DTYPE, Result
from conformance.target import Target
from tests import known_bad
from tests.known_bad import REGISTRY, KnownBad

RECORDED = Path(__file__).parent / "known_bad" / "recorded.json"
# torch.compile, calls by the hundred, and keys take seconds for each twin, and see what the plain call shows
SLOW = ("LIN-COMPILE", "LAY-COMPILE", "FUS-COMPILE", "LIN-MEM-LEAK", "LAY-MEM-LEAK")
SLOW += ("FHE-EXECUTE", "FHE-EXECUTE-NOISE")
# groups whose twins meet their own clause only: they make keys, files, or processes
ALONE = ("remote", "checkpoint", "distributed")
WHOLE = "MOD-ARCH-"  # likewise clauses that make models of transformers
# The twin's own clause is judged in all its dtypes and on every subject, and shrunk, since its message is
# asserted; of the others one case tells whether the defect shows there too.
OWN = dataclasses.replace(PROFILES["quick"], shrinks=60)
# groups of which each attempt writes files, or starts processes
FEWER = {"checkpoint": dataclasses.replace(OWN, shrinks=12), "distributed": dataclasses.replace(OWN, shrinks=0)}
OTHER = dataclasses.replace(PROFILES["quick"], volume=1, shrinks=0)
load_all()
for module in pkgutil.iter_modules(known_bad.__path__):
    importlib.import_module(f"tests.known_bad.{module.name}")


def failures(bad: KnownBad) -> dict[str, Result]:
    """The clauses that a known-bad twin fails, each with its first result that does not pass."""
    getattr(bad.target, "reset", lambda: None)()  # a twin that keeps state starts anew
    target = Target.of(bad.target, bad.name)
    failed: dict[str, Result] = {}
    for clause in CLAUSES.values():
        slow = clause.id in SLOW or clause.group in ALONE or WHOLE in clause.id + bad.clause
        if clause.group not in bad.groups or (slow and clause.id != bad.clause):
            continue
        dtypes = [d for d in clause.dtypes if d in bad.dtypes] or list(clause.dtypes[:1]) or [ANY_DTYPE]
        pairs = list(itertools.product(target.subjects(clause), dtypes))
        own = clause.id == bad.clause
        for subject, dtype in pairs if own else pairs[:1]:
            result = Examination(clause, subject, dtype, FEWER.get(clause.group, OWN) if own else OTHER).run()
            if result.status != "pass":
                failed[clause.id] = result
                break
    return failed


@pytest.mark.parametrize("bad", REGISTRY.values(), ids=REGISTRY)
def test_known_bad_fails_what_is_recorded(
    bad: KnownBad, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "does not end within" in bad.says:
        monkeypatch.setattr("conformance.remote.failing.BOUND", 2.0)  # it never does: no need to wait for long
    monkeypatch.setenv("LORASPEC_RANK_SECONDS", "3" if "not ended within" in bad.says else "60")
    failed = failures(bad)
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if request.config.getoption("--record-known-bad"):
        recorded[bad.name] = sorted(failed)
        RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    assert bad.clause in failed, f"{bad.name} passes {bad.clause}; it fails {sorted(failed)}"
    message = failed[bad.clause].message or ""
    assert bad.says in message, f"{bad.clause} does not say {bad.says!r} but:\n{message}"
    assert sorted(failed) == recorded[bad.name]


def test_every_clause_has_a_known_bad_twin() -> None:
    without = set(CLAUSES) - {bad.clause for bad in REGISTRY.values()}
    assert not without, f"no known-bad twin for {', '.join(sorted(without))}"


def test_nothing_is_recorded_for_twins_that_are_gone() -> None:
    assert set(json.loads(RECORDED.read_text())) == set(REGISTRY)
