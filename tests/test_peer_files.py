"""PEFT's own files pass the clauses on what is in them: its names of parameters and its rule are no failures."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest

from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.target import Target

FEW = dataclasses.replace(PROFILES["quick"], volume=4, shrinks=0)
PASSED = ("CKP-LAYOUT", "CKP-ROUND-TRIP", "CKP-FRESH", "CKP-TARGETS", "CKP-FIELDS-EMPTY", "CKP-CONFIG")


def judged(name: str) -> Any:
    """What becomes of PEFT in a clause."""
    pytest.importorskip("peft")
    target = Target.of(importlib.import_module("conformance.targets.peft_checkpoint"), "peft_checkpoint")
    (subject,) = target.subjects(load_all()[name])
    return Examination(load_all()[name], subject, "float32", FEW).run()


@pytest.mark.filterwarnings("ignore")  # PEFT warns of the base model's missing config
@pytest.mark.parametrize("name", PASSED)
def test_files_of_peft_pass(name: str) -> None:
    result = judged(name)
    assert result.status == "pass", result.message


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "says"), [("CKP-SCALE", "adapter term"), ("CKP-MISSING", "raised nothing")])
def test_what_peft_loses_fails(name: str, says: str) -> None:
    result = judged(name)
    assert result.status == "fail"
    assert says in result.message
