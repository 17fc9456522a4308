"""Right but different layers on a packed base: every MUST clause of the group passes on them."""

from __future__ import annotations

import dataclasses

import pytest

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
