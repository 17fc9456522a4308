"""Right but different implementations: every clause must pass on them, in every dtype."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from conformance.judgement.result import ANY_DTYPE
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import MUST, load_all
from conformance.target.target import Target
from tests.campaigns.variants import VARIANTS
from tests.campaigns.variants.choices import CHOICES

# these clauses repeat the formulas in another mode or many times: they add nothing about the order of summation
SAME_FORMULA = ("COMPILE", "CKPT", "SHAPES", "DROP", "LEAK")
# a compiled variant recompiles for every new kind of operand: `tests.campaigns.alarms` runs it on all clauses
SLOW = {"compiled": ("LIN-FWD", "LIN-BWD")}
# Each variant in a wide and in a narrow dtype, each dtype by half of the variants; `tests.campaigns.alarms` judges all.
PAIRS = [
    (name, dtype)
    for number, name in enumerate(VARIANTS)
    for place, dtype in enumerate(FLOAT_DTYPES)
    if (number + place) % 2 == 0
]
# One case for each clause. Each variant gets its own seed, so that together they cover far more cases than a quick run;
# its dtypes share the covering arrays of that seed.
PROFILES_OF = {
    name: dataclasses.replace(PROFILES["quick"], volume=1, margin=None, shares=False, seed=seed)
    for seed, name in enumerate(VARIANTS)
}
# enough cases to reach a choice that concerns one dropout position or dtype
SOME = dataclasses.replace(PROFILES["quick"], volume=6, margin=None)


@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_no_clause_fails_a_correct_variant(name: str, dtype: str) -> None:
    target = Target.of(VARIANTS[name], name)
    alarms = []
    for clause in load_all().values():
        if clause.group != "linear" or clause.level != MUST or any(word in clause.id for word in SAME_FORMULA):
            continue
        if clause.id not in SLOW.get(name, (clause.id,)):
            continue
        for subject in target.subjects(clause) if dtype in clause.dtypes else ():
            result = Examination(clause, subject, dtype, PROFILES_OF[name]).run()
            if result.status != "pass":
                alarms.append(f"{clause.id} {subject.name} {result.status}: {result.case}\n{result.message}")
    assert not alarms, "\n\n".join(alarms)


@pytest.mark.parametrize("name", CHOICES)
def test_no_clause_fails_an_allowed_choice(name: str) -> None:
    thing, clauses = CHOICES[name]
    target = Target.of(thing, name)
    for clause in map(load_all().__getitem__, clauses):
        for subject, dtype in itertools.product(target.subjects(clause), clause.dtypes or (ANY_DTYPE,)):
            result = Examination(clause, subject, dtype, SOME).run()
            assert result.status == "pass", f"{clause.id} {dtype}: {result.case}\n{result.message}"
