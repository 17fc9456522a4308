"""Benchmarks of grouped layers: the frozen experts, the check at the timed size, and the work that is counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import optimized
import reference
from conformance.bench import cases, work
from conformance.bench.agreement import worst_ratio
from conformance.bench.cases import Size
from conformance.bench.experts import ExpertAgreement, ExpertOperands, built
from conformance.bench.layers import SCALE, Contender, Problem
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Violation
from conformance.target.target import Target

SIZE = Size(40, 16, 24, 4, 3)


def timed(function: Any, dtype: str = "float32") -> float:
    """The worst error ÷ budget of a function at the timed size."""
    problem = Problem(SIZE, dtype)
    operands = ExpertOperands(problem)
    target = Target.of(SimpleNamespace(lora_grouped_linear=function), "timed")
    return ExpertAgreement(problem, operands).check(built(Contender(target, "lora_grouped_linear"), operands))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("package", [reference, optimized], ids=["reference", "optimized"])
def test_right_results_agree_at_the_timed_size(package: Any, dtype: str) -> None:
    assert timed(package.lora_grouped_linear, dtype) <= 1


def test_a_wrong_result_is_named() -> None:
    def halved(x: Any, index: Any, weight: Any, bias: Any, lora_A: Any, lora_B: Any, scale: float) -> Any:
        return reference.lora_grouped_linear(x, index, weight, bias, lora_A, lora_B, scale / 2)

    with pytest.raises(Violation, match="worst    y"):
        timed(halved)


def test_a_missing_result_and_one_of_another_shape_are_named() -> None:
    expected = {"first": Expected("dA", np.zeros((3, 2)), None, torch.float32)}
    with pytest.raises(Violation, match="dA is None"):
        worst_ratio({"first": None}, expected)
    with pytest.raises(Violation, match=r"dA has shape \[2, 3\]: expected \[3, 2\]"):
        worst_ratio({"first": torch.zeros(2, 3)}, expected)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_frozen_experts_are_the_layer_without_its_update(dtype: str) -> None:
    operands = ExpertOperands(Problem(SIZE, dtype))
    weight = operands.frozen.weight
    plain = reference.lora_grouped_linear(
        operands.x, operands.index, weight, None, operands.lora_A, torch.zeros_like(operands.lora_B), SCALE
    )
    torch.testing.assert_close(operands.frozen(operands.x), plain)


def test_sizes_with_experts() -> None:
    assert cases.sizes((), (), "cpu", 8) == (Size(512, 256, 256, 8, 8), Size(1024, 512, 512, 16, 8))
    assert cases.sizes([(5, 6, 7)], [2], "cpu", 3) == (Size(5, 6, 7, 2, 3),)
    assert str(Size(5, 6, 7, 2, 3)) == "5x6x7 r2 e3"
    one, three = work.adapted(Size(5, 6, 7, 2, 1), 4), work.adapted(Size(5, 6, 7, 2, 3), 4)
    assert [w.flops for w in one] == [w.flops for w in three]
    assert three[0].bytes - one[0].bytes == 4 * 2 * (6 * 7 + 2 * (6 + 7))
