"""DoRA with its norm differentiated is as right as with a constant norm, if the target declares it."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.target import Target
from tests.baselines.layer import Layer
from tests.baselines.linear import Right
from tests.known_bad.dora.forward_and_gradients import DifferentiatesTheNorm, DifferentiatesTheNormByA

GRADIENTS = ("DORA-BWD-DX", "DORA-BWD-DA", "DORA-BWD-DB", "DORA-BWD-DM")


def failing(kind: type[Layer], convention: str, dtypes: tuple[str, ...], clauses: tuple[str, ...]) -> set[str]:
    """Those of these clauses that a layer class does not pass under a convention of the norm."""
    right: Any = Right(kind)
    right.CONFORMANCE = {"features": {"dora_norm": convention}}
    target, found = Target.of(right, "differentiated"), set()
    for clause in map(load_all().__getitem__, clauses):
        for subject in target.subjects(clause):
            for dtype in (dtype for dtype in clause.dtypes if dtype in dtypes):
                if Examination(clause, subject, dtype, PROFILES["quick"]).run().status != "pass":
                    found.add(clause.id)
    return found


def test_a_differentiated_norm_is_right_in_every_clause_and_dtype_if_it_is_declared() -> None:
    dora = tuple(name for name, clause in load_all().items() if clause.group == "dora")
    every = ("float64", "float32", "bfloat16", "float16")
    assert failing(DifferentiatesTheNorm, "differentiated", every, dora) == set()


@pytest.mark.parametrize(
    ("kind", "convention", "wrong"),
    [
        (DifferentiatesTheNorm, "constant", {"DORA-BWD-DA", "DORA-BWD-DB"}),
        (Layer, "differentiated", {"DORA-BWD-DA", "DORA-BWD-DB"}),
        (DifferentiatesTheNormByA, "differentiated", {"DORA-BWD-DB"}),
    ],
)
def test_the_other_convention_or_half_of_it_fails(kind: type[Layer], convention: str, wrong: set[str]) -> None:
    assert failing(kind, convention, ("float32",), GRADIENTS) == wrong
