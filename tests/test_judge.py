"""An infinite result passes only where the exact result overflows the dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Violation


def expected(value: float, dtype: torch.dtype = torch.float16) -> Expected:
    """An expected tensor of one element, with a relative budget of 1e-3."""
    return Expected("y", np.array([value]), np.array([abs(value) / 1000]), dtype, certified=False)


@pytest.mark.parametrize(("value", "got"), [(-74086.0, -np.inf), (74086.0, np.inf), (65500.0, np.inf)])
def test_infinity_passes_where_the_exact_result_overflows(value: float, got: float) -> None:
    assert judge(torch.tensor([got], dtype=torch.float16), expected(value)) == 0.0


@pytest.mark.parametrize(
    ("value", "got", "dtype"),
    [
        (-74086.0, np.inf, torch.float16),  # the wrong sign
        (74086.0, 65504.0, torch.float16),  # clamped to the largest number
        (60000.0, np.inf, torch.float16),  # the value fits
        (74086.0, np.inf, torch.float32),
        (74086.0, np.nan, torch.float16),
    ],
)
def test_other_infinities_and_nan_fail(value: float, got: float, dtype: torch.dtype) -> None:
    with pytest.raises(Violation, match="worst    y"):
        judge(torch.tensor([got], dtype=dtype), expected(value, dtype))
