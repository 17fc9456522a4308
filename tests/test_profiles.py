"""A clause's weight scales what is spent on it; seeding costs little and does what torch's own does."""

from __future__ import annotations

import pytest
import torch

from conformance.profiles import PROFILES
from conformance.seeding import seed_torch


@pytest.mark.parametrize(("weight", "cases", "searched"), [(1.0, 24, 6), (0.5, 12, 3), (0.05, 1, 0)])
def test_weight_scales_cases_and_searches(weight: float, cases: int, searched: int) -> None:
    assert PROFILES["default"].cases(weight, "cpu") == cases
    assert PROFILES["default"].searched(weight, "cpu") == searched
    assert PROFILES["default"].searched(weight, "interpreter") == 0


def test_seeding_is_that_of_torch() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    seed_torch(7)
    assert torch.equal(torch.rand(3), wanted)
