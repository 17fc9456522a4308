"""The search for a failing case of one trial, and for the smallest one."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.judgement.result import ANY_DTYPE
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.subject import Subject


@pytest.mark.parametrize("later", [Inconclusive("too little"), Refused("not now")], ids=["inconclusive", "refused"])
def test_a_smaller_case_that_no_longer_decides_leaves_the_first_one(later: Exception) -> None:
    seen: list[Any] = []

    def check(_: Subject, case: Any) -> None:
        seen.append(case)
        if case in seen[:-1] and case != seen[0]:  # the second time; a target may keep something from the first
            raise later
        raise Violation("wrong")

    clause = dataclasses.replace(load_all(["linear"])["LIN-FWD"], check=check)
    subject = Subject("lora_linear", None, SimpleNamespace())
    result = Examination(clause, subject, "float32", PROFILES["quick"]).run()
    assert (result.status, result.case, str(result.message).split("\n")[0]) == ("fail", str(seen[0]), "wrong")
    assert len({str(case) for case in seen}) > 1  # smaller ones were tried


@pytest.mark.parametrize("name", ["LIN-BWD-DX", "CFG-DEFAULTS"])  # with rows that the group shares, and without
def test_each_case_of_a_run_can_be_judged_alone(name: str) -> None:
    seen: list[Any] = []
    clause = dataclasses.replace(load_all()[name], check=lambda _, case: seen.append(case))
    dtype = (clause.dtypes or (ANY_DTYPE,))[0]
    subject = Subject((clause.subjects or ("LoRAConfig",))[0], None, SimpleNamespace())
    trial = Examination(clause, subject, dtype, PROFILES["quick"])
    assert trial.run().examples == trial.last + 1 == len(seen)
    whole = seen.copy()
    for number in range(len(whole) + 1):  # one more than there are
        seen.clear()
        assert trial.only(number).status == "pass"
        assert seen == whole[number : number + 1]
