"""The number of cases of a clause depends on its weight and its known-bad twins; seeding agrees with torch's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from conformance.cases.case import FIRST_SEED, Case, Space
from conformance.cases.linear_case import LinearCase
from conformance.cases.seeding import seed_torch
from conformance.run import profiles
from conformance.run.profiles import PROFILES, Profile
from conformance.specification.clause import Clause


def clause(weight: float) -> Clause:
    """A clause with this weight."""
    return Clause("LIN-X", "It is.", max, Space(Case), weight=weight)


@pytest.mark.parametrize(("weight", "cases", "searched"), [(1.0, 1000, 200), (0.5, 500, 100), (0.0004, 1, 0)])
def test_weight_scales_cases_and_searches(weight: float, cases: int, searched: int) -> None:
    assert PROFILES["nightly"].cases(clause(weight), "cpu", "float32") == cases
    assert PROFILES["nightly"].searched(clause(weight), "cpu") == searched
    assert PROFILES["nightly"].searched(clause(weight), "interpreter") == 0


def test_a_clause_gets_the_cases_its_known_bad_twins_need_plus_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "deaths", lambda: {"LIN-X": 3})
    profile = Profile("p", volume=20, interpreted=4, margin=2)
    assert profile.cases(clause(1.0), "cpu") == 5
    assert profile.cases(clause(0.1), "cpu") == 3  # the weight leaves no margin
    assert profile.cases(clause(1.0), "interpreter") == 4
    assert dataclasses.replace(profile, margin=None).cases(clause(1.0), "cpu") == 20
    monkeypatch.setattr(profiles, "deaths", dict)  # the clause was not measured
    assert profile.cases(clause(1.0), "cpu") == 20


def test_a_profile_with_a_strength_draws_all_rows_of_the_covering_array() -> None:
    space = Space(LinearCase, m=(1, 2, 3), k=(1, 2, 3, 4, 5), values=("integers", "normal"))
    one = Clause("LIN-X", "It is.", max, space, dtypes=("float32", "bfloat16"), weight=0.01)
    own = [PROFILES["default"].cases(one, "cpu", dtype) for dtype in one.dtypes]
    assert min(own) >= 5
    assert PROFILES["default"].cases(one, "cpu", "float32", whole=True) == sum(own)
    assert PROFILES["default"].cases(one, "interpreter", "float32") == PROFILES["quick"].cases(one, "cpu") == 1


def test_of_clauses_over_the_same_lives_one_covers_them_in_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lives(Space[Case]):
        covers = True

        def enough(self) -> int:
            return 40

    lives = Lives(Case)
    names = ("LIN-X", "LIN-Y", "LIN-Z")
    same = {name: Clause(name, "It is.", max, lives, weight=2.0) for name in names}
    monkeypatch.setattr(profiles, "REGISTRY", same)
    monkeypatch.setattr(profiles, "deaths", lambda: {"LIN-X": 3, "LIN-Y": 5})
    quick = dataclasses.replace(PROFILES["quick"], margin=2)
    assert [quick.cases(clause, "cpu") for clause in same.values()] == [5, 12, 12]  # LIN-Z has not been measured
    assert [PROFILES["default"].cases(clause, "cpu") for clause in same.values()] == [40, 40, 40]


def test_the_measured_numbers_of_cases_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deaths.json"
    path.write_text('{"A-B": [0, 2], "A-C": [null, 3], "A-D": [4, 1]}')
    monkeypatch.setattr(profiles, "DEATHS", path)
    assert profiles.deaths.__wrapped__() == {"A-B": 1, "A-D": 5}


def test_seeding_agrees_with_torch_manual_seed() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    seed_torch(7)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("ways", range(2, 9))
def test_the_first_cases_of_the_dtypes_take_different_ways(ways: int) -> None:
    first = [Space(LinearCase).draw(0, "LIN-X", 0, dtype).seed % ways for dtype in FIRST_SEED]
    assert len(set(first)) >= min(ways, 3)
