"""A gradient norm in the gradients' dtype passes if that is declared; an argument that is lacking is not judged."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.target import Target
from tests.baselines.gradnorm import Right
from tests.campaigns.variants.norms import Narrow, Silent

FEW = dataclasses.replace(PROFILES["quick"], volume=6, shrinks=0)
OF_NORMS = ("GRN-NORM", "GRN-DTYPE", "GRN-RANGE", "GRN-WIDE", "GRN-NOTHING", "GRN-CLIP-MIXED", "GRN-FUNCTION")
REFUSING = ("GRN-NONFINITE-RAISE", "GRN-NONFINITE-KEEP", "GRN-FINITE")


class NarrowSums(Narrow):
    """A norm that is summed in the dtype of the gradients too."""

    def norm(self, gradients: list[Tensor]) -> Tensor:
        total = torch.zeros(())
        for g in gradients:
            for row in g.flatten().split(256):
                total = (total.to(g.dtype) + (row * row).sum().to(g.dtype)).double()
        return total.sqrt()


def failures(thing: Any, clauses: tuple[str, ...]) -> set[str]:
    """The clauses that a target fails in some dtype."""
    target, found = Target.of(thing, "mine"), set()
    assert target.binding_errors() == []
    for clause in map(load_all().__getitem__, clauses):
        (subject,) = target.subjects(clause)
        found |= {
            clause.id
            for subject, dtype in itertools.product([subject], clause.dtypes or ("float32",))
            if Examination(clause, subject, dtype, FEW).run().status != "pass"
        }
    return found


def test_a_norm_in_the_dtype_of_the_gradients_passes_where_it_is_declared() -> None:
    assert failures(Narrow(), OF_NORMS) == set()


def test_the_same_norm_fails_where_it_is_not_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Narrow, "CONFORMANCE", {})
    assert failures(Narrow(), ("GRN-DTYPE",)) == {"GRN-DTYPE"}


def test_sums_in_a_narrow_dtype_fail_by_either_convention() -> None:
    assert failures(NarrowSums(), ("GRN-WIDE",)) == {"GRN-WIDE"}


def test_a_float32_norm_fails_where_the_other_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Right, "CONFORMANCE", Narrow.CONFORMANCE, raising=False)
    assert failures(Right(), ("GRN-DTYPE",)) == {"GRN-DTYPE"}


def test_a_function_without_error_if_nonfinite_is_not_judged_by_it() -> None:
    target = Target.of(Silent(), "mine")
    assert all(target.lacking(load_all()[name]) == ("clip_grad_norm_(error_if_nonfinite)",) for name in REFUSING)
    assert failures(Silent(), ("GRN-NOTHING", "GRN-CLIP")) == set()
