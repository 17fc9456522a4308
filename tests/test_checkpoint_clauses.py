"""Right but different ways of saving and loading: every clause of group `checkpoint` must pass on them."""

from __future__ import annotations

import dataclasses

import pytest

from conformance.judgement.result import ANY_DTYPE
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.target import Target
from tests.campaigns.variants.files import VARIANTS

# without the rows that the clauses share out: they are for the targets of a run
PROFILE = dataclasses.replace(PROFILES["quick"], volume=1, shares=False)


@pytest.mark.parametrize("target", VARIANTS.values(), ids=VARIANTS)
def test_no_checkpoint_clause_fails_a_right_implementation(target: object) -> None:
    alarms = []
    for clause in load_all().values():
        if clause.group != "checkpoint":
            continue
        for subject in Target.of(target, "right").subjects(clause):
            for dtype in clause.dtypes[:1] or [ANY_DTYPE]:
                result = Examination(clause, subject, dtype, PROFILE).run()
                if result.status != "pass":
                    alarms.append(f"{clause.id} {result.status}: {result.case}\n{result.message}")
    assert not alarms, "\n\n".join(alarms)
