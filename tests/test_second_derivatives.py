"""Second derivatives of the functions of `optimized` are right, or refused with a message, on every path."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import optimized

SHAPES = ((5, 3), (2, 3, 3), (3,), (0, 3))
NEEDS = [needs for n in (1, 2, 3) for needs in itertools.combinations(("x", "lora_A", "lora_B"), n)]


def operands(shape: tuple[int, ...], needs: tuple[str, ...]) -> dict[str, Tensor]:
    """Random float64 operands of K = 3 features, N = 4 outputs and rank 2."""
    torch.manual_seed(0)
    sizes = {"x": shape, "lora_A": (2, 3), "lora_B": (4, 2)}
    return {name: torch.randn(s, dtype=torch.float64, requires_grad=name in needs) for name, s in sizes.items()}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("based", [True, False], ids=["base", "update"])
def test_second_derivatives_of_lora_linear_are_right(shape: tuple[int, ...], based: bool) -> None:
    torch.manual_seed(1)
    weight = torch.randn(4, 3, dtype=torch.float64) if based else None
    bias = torch.randn(4, dtype=torch.float64) if based else None

    def call(x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        return optimized.lora_linear(x, weight, bias, lora_A, lora_B, 1.5)

    found = operands(shape, ("x", "lora_A", "lora_B"))
    assert torch.autograd.gradgradcheck(call, tuple(found.values()))


@pytest.mark.parametrize("needs", NEEDS, ids="-".join)
def test_second_derivatives_with_some_gradients_are_right_or_refused(needs: tuple[str, ...]) -> None:
    weight = torch.eye(4, 3, dtype=torch.float64)
    found = operands((5, 3), needs)

    def call(x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        return optimized.lora_linear(x, weight, None, lora_A, lora_B, 1.5)

    if needs in (("lora_B",), ("x", "lora_B")):  # x is not saved if lora_B is trained without lora_A
        with pytest.raises(RuntimeError, match="no second derivative of lora_linear where lora_B is trained"):
            torch.autograd.gradgradcheck(call, tuple(found.values()))
    else:
        assert torch.autograd.gradgradcheck(call, tuple(found.values()))


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_second_derivatives_of_the_adapter_function_are_right(shape: tuple[int, ...]) -> None:
    def call(x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        return optimized.LoRATritonFunction.apply(x, lora_A, lora_B, 1.5, torch.float64)  # type: ignore[no-any-return]

    assert torch.autograd.gradgradcheck(call, tuple(operands(shape, ("x", "lora_A", "lora_B")).values()))
