"""The error budget of fused blocks: slopes of the activations, bounds on their curvature and evaluation error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conformance.clauses.fused import activation_curves
from conformance.numerics.formats import format_of, numbers
from reference.mlp import ACTIVATIONS, activated

T = np.linspace(-20, 20, 40001)
SMOOTH = [name for name in ACTIVATIONS if name != "relu2"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_slopes_are_those_of_torch(activation: str) -> None:
    t = torch.from_numpy(T).requires_grad_()
    value = activated(t, activation)
    value.sum().backward()
    assert t.grad is not None
    np.testing.assert_allclose(activation_curves.value(T, activation), numbers(value), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(activation_curves.slope(T, activation), numbers(t.grad), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("near", [0.0, 0.01, 0.5])
def test_the_second_and_third_derivatives_stay_within_their_bounds(activation: str, near: float) -> None:
    second = np.abs(activation_curves.second(T, activation))
    third = np.abs(np.gradient(activation_curves.second(T, activation), T))
    around = int(near / (T[1] - T[0]))
    window = np.lib.stride_tricks.sliding_window_view(np.pad(second, around, mode="edge"), 2 * around + 1).max(1)
    assert (window <= activation_curves.bend(T, activation, np.full_like(T, near)) + 1e-6).all()
    assert (
        third
        <= np.minimum(activation_curves.BENDS[activation][1], 8 * activation_curves._decay(np.abs(T), activation))
        + 1e-5
    ).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("off", [-0.3, -0.01, 0.01, 0.3])
def test_the_remainder_of_the_slope_stays_within_its_bound(activation: str, off: float) -> None:
    rest = (
        activation_curves.slope(T + off, activation)
        - activation_curves.slope(T, activation)
        - off * activation_curves.second(T, activation)
    )
    assert (np.abs(rest) <= activation_curves.slope_rest(T, activation, np.full_like(T, abs(off))) + 1e-9).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_torch_in_float32_is_within_the_allowance_and_bfloat16_is_not(activation: str) -> None:
    t = torch.from_numpy(T).float()
    exact = t.double().numpy()
    unit = format_of(torch.float32).unit
    value = numbers(activated(t, activation))
    allowed = activation_curves.value_error(exact, activation, unit)
    assert (np.abs(value - activation_curves.value(exact, activation)) <= allowed).all()
    narrow = numbers(activated(t.bfloat16(), activation))
    # the allowance is tight: many errors in bfloat16 exceed it
    assert (np.abs(narrow - activation_curves.value(exact, activation)) > allowed).mean() > 0.3
