"""The budgets of merged weights and of steps cover what right layers round where numbers are subnormal."""

import numpy as np
import pytest
import torch

from conformance.numerics import budget
from conformance.numerics.formats import Array, format_of, numbers, rounded

SCALE = 0.5


def tiny(seed: int, *shape: int, power: int = -17) -> Array:
    """Numbers of which most are subnormal in float16."""
    return rounded(np.random.default_rng(seed).standard_normal(shape) * 2.0**power, torch.float16)


def stored(values: Array) -> Array:
    """The values as a tensor of float16 holds them."""
    return rounded(values, torch.float16)


def test_a_weight_that_is_merged_and_unmerged_is_within_its_budget() -> None:
    W, update = tiny(0, 40, 30), SCALE * tiny(1, 40, 30)  # in float32: every other element is half a step off
    error = np.abs(stored(stored(W + update) - update) - W)
    assert (error <= budget.unmerged_weight(W, update, SCALE, torch.float16)).all()
    assert (error > 2 * format_of(torch.float16).unit * (np.abs(W) + np.abs(update))).any()


def test_a_weight_may_have_had_a_coarser_dtype() -> None:
    W, update = np.ones((1, 1)), np.ones((1, 1))
    allowed = budget.unmerged_weight(W, update, 1.0, torch.float32, torch.bfloat16)
    assert allowed == pytest.approx(4 * format_of(torch.bfloat16).unit)
    steps = budget.unmerged_weight(0 * W, 0 * update, 1.0, torch.bfloat16, torch.float16)
    assert steps == 4 * format_of(torch.float16).step


def test_a_step_of_sgd_is_within_its_budget() -> None:
    rate, before, gradient = 0.125, torch.zeros(50, dtype=torch.float16), tiny(3, 50, power=-14)
    parameter = torch.nn.Parameter(before)
    parameter.grad = torch.from_numpy(gradient).half()
    torch.optim.SGD([parameter], lr=rate).step()
    error = np.abs(numbers(parameter) + rate * gradient)
    assert (error <= budget.moved(numbers(before), rate * gradient, torch.float16)).all()
    assert (error > 3 * format_of(torch.float16).unit * np.abs(rate * gradient)).any()
