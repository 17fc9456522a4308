"""Right but different layers on a packed base: every MUST clause of the group passes on them, whatever they offer."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import pytest

import reference
from conformance.clauses.quantised.case import PACKABLE, PackedCase
from conformance.clauses.quantised.packed_values import drawn
from conformance.judgement.result import ANY_DTYPE
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import MUST, load_all
from conformance.target.target import Target
from tests.baselines.packed_variants import VARIANTS

SOME = dataclasses.replace(PROFILES["quick"], volume=4, margin=None, shrinks=0, shares=False)
# judged by what the target packs, whichever way its layers compute
OF_STORAGE = ("QNT-FMT-", "QNT-PACK", "QNT-READ-", "QNT-FN")
OPTIONAL = ("packed_dora",)  # the variants have no DoRA


@pytest.mark.parametrize("name", VARIANTS)
def test_no_clause_fails_a_right_variant(name: str) -> None:
    target, alarms = Target.of(VARIANTS[name], name), []
    for clause in load_all(["quantised"]).values():
        if clause.group != "quantised" or clause.level != MUST or clause.id.startswith(OF_STORAGE):
            continue
        if clause.feature in OPTIONAL:
            continue
        for subject in target.subjects(clause):
            for dtype in [d for d in clause.dtypes if d in ("float32", "bfloat16")] or [(*clause.dtypes, ANY_DTYPE)[0]]:
                result = Examination(clause, subject, dtype, SOME).run()
                if result.status != "pass":
                    alarms.append(f"{clause.id} {dtype} {result.status}: {result.case}\n{result.message}")
    assert not alarms, "\n\n".join(alarms)


class PreOnly:
    """A target that drops elements of x alone, and refuses the other position."""

    CONFORMANCE: ClassVar = {"dropout_positions": ("pre",)}
    packed_linear = staticmethod(reference.packed_linear)

    @staticmethod
    def patch_linear_module(orig_linear: Any, *, dropout: float = 0.0, dropout_position: str = "pre", **kw: Any) -> Any:
        if dropout and dropout_position != "pre":
            raise NotImplementedError("there is one position")
        given = {"dropout": dropout, "dropout_position": dropout_position, **kw}
        return reference.patch_linear_module(orig_linear, **given)


@pytest.mark.parametrize("name", ["QNT-DROP-BWD", "QNT-DROP-BASE"])
def test_dropout_is_judged_at_the_position_that_a_target_has(name: str) -> None:
    clause = load_all(["quantised"])[name]
    for subject in Target.of(PreOnly(), "pre only").subjects(clause):
        result = Examination(clause, subject, "float32", SOME).run()
        assert result.status == "pass", result.message


@pytest.mark.parametrize("format_", [*PACKABLE, "hqq"])
def test_numbers_near_each_code_are_drawn_for_every_format_that_a_target_may_pack(format_: str) -> None:
    case = PackedCase(m=1, k=64, n=16, r=1, format=format_, content="codes")
    assert np.isfinite(drawn(case)["weight"]).all()
    assert len(np.unique(drawn(case)["weight"])) >= 15
