"""The check that a layer is correct at the timed size: y, dX, dA and dB within the error budget.

The quick profile draws small cases; a layer that is wrong, or does nothing, at large sizes must not be ranked. Each
result is compared on a few indices of one dimension, which suffice for the oracle to compute these elements: y and dX
on a few tokens, dA on a few input features, dB on a few output features.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from conformance.bench.layers import SCALE, Problem, factors
from conformance.bench.layers import Operands as Timed
from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.judgement.judge import compare
from conformance.judgement.linear_oracle import Expected, LinearOracle
from conformance.judgement.outcomes import require
from conformance.numerics.formats import dtype_named, numbers

PARTS = 8  # tokens, or features
# for each result: the tensor of the same shape, and the axis and dimension from which indices are compared
LAYOUTS = {"y": ("g", 0, "m"), "dX": ("x", 0, "m"), "dA": ("lora_A", 1, "k"), "dB": ("lora_B", 0, "n")}
DIMENSIONS = {"x": "mk", "g": "mn", "weight": "nk", "bias": "n", "lora_A": "rk", "lora_B": "nr"}


def worst_ratio(results: Mapping[str, Tensor | None], expected: Mapping[str, Expected]) -> float:
    """Compare every expected result; return the worst error ÷ budget.

    Raises:
        Violation: naming the result that is missing, has another shape, or is wrong.
    """
    worst = 0.0
    for name, wanted in expected.items():
        result = results[name]
        require(result is not None, f"{wanted.name} is None")
        assert result is not None
        got, shape = list(result.shape), list(wanted.value.shape)
        require(got == shape, f"{wanted.name} has shape {got}: expected {shape}")
        worst = max(worst, compare(numbers(result), wanted))
    return worst


class Part(Operands):
    """The timed operands restricted to a few indices of one dimension, as operands of the oracle."""

    def __init__(
        self, problem: Problem, timed: Timed, dimension: str, kept: Tensor, others: Mapping[str, str] = DIMENSIONS
    ) -> None:
        size = {name: getattr(problem.size, name) for name in "mknr"} | {dimension: len(kept)}
        self.case = LinearCase(dtype=problem.dtype, scale=SCALE, bias=True, values="normal", **size)
        self.device, self.scale, self.shape = problem.device, SCALE, (size["m"], size["n"])
        self.dtype = self.adapter_dtype = self.computed_in = dtype_named(problem.dtype)
        tensors = {"x": timed.x, "g": timed.g, "lora_A": timed.lora_A, "lora_B": timed.lora_B}
        tensors |= dict(timed.frozen.named_parameters())
        self.values = {
            name: numbers(_part(t, {**DIMENSIONS, **others}[name], dimension, kept)) for name, t in tensors.items()
        }


class Agreement:
    """The expected results on the operands of a problem, computed once, and the comparison of layers with them.

    Attributes:
        layouts: for each result the tensor of the same shape, and the axis and dimension of its compared indices.
    """

    layouts: Mapping[str, tuple[str, int, str]] = LAYOUTS

    def __init__(self, problem: Problem, timed: Timed) -> None:
        self.problem, self.timed = problem, timed

    def check(self, layer: nn.Module) -> float:
        """Run the layer once, without dropout; return the worst error ÷ budget.

        Raises:
            Violation: naming the wrong result.
        """
        x, training = self.timed.x, layer.training
        y = layer.eval()(x)
        y.backward(self.timed.g)
        lora_A, lora_B = factors(layer)
        results = {"y": y.detach(), "dX": x.grad, "dA": lora_A.grad, "dB": lora_B.grad}
        x.grad = lora_A.grad = lora_B.grad = None
        layer.train(training)
        for name, result in results.items():
            shape = getattr(self.timed, self.layouts[name][0]).shape
            require(result is None or result.shape == shape, f"{name} has shape {list(getattr(result, 'shape', ()))}")
        return worst_ratio({name: self.part(name, result) for name, result in results.items()}, self.expected)

    def part(self, name: str, result: Tensor | None) -> Tensor | None:
        """The compared elements of a result."""
        _, axis, dimension = self.layouts[name]
        return None if result is None else result.index_select(axis, self.kept(dimension))

    def kept(self, dimension: str) -> Tensor:
        """The compared indices of a dimension: the first, the last, and some between."""
        size = getattr(self.problem.size, dimension)
        spaced = torch.linspace(0, size - 1, min(PARTS, size), dtype=torch.float64)
        return spaced.round().long().to(self.problem.device)

    @cached_property
    def expected(self) -> dict[str, Expected]:
        """The oracle's value of each result on its part."""
        oracles = {d: LinearOracle(Part(self.problem, self.timed, d, self.kept(d))) for d in "mkn"}
        return {name: getattr(oracles[dimension], name) for name, (_, _, dimension) in LAYOUTS.items()}


def _part(tensor: Tensor, dimensions: str, dimension: str, kept: Tensor) -> Tensor:
    axis = dimensions.find(dimension)
    return tensor if axis < 0 else tensor.detach().index_select(axis, kept)
