"""Right but different grouped layers and experts: every MUST clause of the group passes on them."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from conformance.judgement.outcomes import Inconclusive
from conformance.judgement.result import ANY_DTYPE
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import MUST, load_all
from conformance.target.check_case import check_case
from conformance.target.target import Target
from tests.campaigns.variants.experts import VARIANTS

SOME = dataclasses.replace(PROFILES["quick"], volume=3, margin=None, shrinks=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_clause_fails_a_right_variant(name: str) -> None:
    target, alarms = Target.of(VARIANTS[name], name), []
    for clause in load_all(["experts"]).values():
        if clause.group != "experts" or clause.level != MUST:
            continue
        for subject in target.subjects(clause):
            for dtype in [d for d in clause.dtypes if d in ("float32", "bfloat16")] or [(*clause.dtypes, ANY_DTYPE)[0]]:
                result = Examination(clause, subject, dtype, SOME).run()
                if result.status != "pass":
                    alarms.append(
                        f"{clause.id} {subject.name} {dtype} {result.status}: {result.case}\n{result.message}"
                    )
    assert not alarms, "\n\n".join(alarms)


@pytest.mark.filterwarnings("ignore")
def test_peft_fails_only_with_one_expert() -> None:
    pytest.importorskip("peft")
    target = Target.of(importlib.import_module("conformance.targets.peft_experts"), "peft_experts")
    clause = load_all(["experts"])["EXP-MOD-FWD"]
    alone = dataclasses.replace(
        clause, cases=clause.cases.narrowed(experts=(1,), routing=("uneven",), kind=("interleaved",))
    )
    (subject,) = target.subjects(alone)
    assert Examination(alone, subject, "float32", SOME).run().status == "fail"
    failed = set()
    for clause in load_all(["experts"]).values():
        if clause.group == "experts" and clause.level == MUST:
            for subject in target.subjects(clause):
                result = Examination(clause, subject, "float32", dataclasses.replace(SOME, volume=16)).run()
                failed |= {clause.id} if result.status != "pass" else set()
    assert failed <= {"EXP-MOD-FWD", "EXP-MOD-BWD", "EXP-MOD-DP", *target.deviations}


@pytest.mark.parametrize("name", ["EXP-MOD-DP", "EXP-MOD-ABSENT", "EXP-MOD-DUPLICATE"])
def test_most_cases_decide_in_16_bits(name: str) -> None:
    clause = load_all(["experts"])[name]
    (subject,) = Target.of(VARIANTS["right modules"], "right").subjects(clause)
    examination = Examination(clause, subject, "bfloat16", SOME)
    undecided = 0
    for index in range(16):
        try:
            check_case(clause, subject, examination.case(index))
        except Inconclusive:
            undecided += 1
    assert undecided <= 3
