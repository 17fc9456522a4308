"""Derivatives of gradients, compared with those of a plain implementation in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from conformance.judgement.judge import compare
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import numbers


def second_derivatives(
    ys: Sequence[torch.Tensor], leaves: Mapping[str, torch.Tensor], upstream: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The gradients of the sum of all squared gradients, by the leaf's name."""
    first = torch.autograd.grad(list(ys), list(leaves.values()), list(upstream), create_graph=True)
    total = torch.stack([(gradient * gradient).sum() for gradient in first]).sum()
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


def judge_second_derivatives(got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor]) -> None:
    """Compare them with those of a plain implementation."""
    for name, value in want.items():
        exact = numbers(value)
        size = np.abs(exact).max(initial=1.0)
        # float64 on both sides, which differ in the order of some hundred roundings
        expected = Expected(f"second derivative by {name}", exact, np.full(exact.shape, 1e-10 * size), torch.float64)
        compare(numbers(got[name]), expected)
