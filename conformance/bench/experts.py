"""The timed grouped layers: frozen experts, a target's `lora_grouped_linear` over them, the check of its results."""

from __future__ import annotations

from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.bench.agreement import worst_ratio
from conformance.bench.layers import SCALE, Contender, Problem
from conformance.clauses.experts.oracle import Oracle
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.budget import Rounding
from conformance.numerics.formats import dtype_named, numbers


class ExpertOperands:
    """x [M, K], g [M, N], an expert for each row, frozen experts [E, N, K], and adapters [E, r, K], [E, N, r]."""

    def __init__(self, problem: Problem) -> None:
        size = problem.size
        place: Any = {"dtype": dtype_named(problem.dtype), "device": problem.device}
        draws = torch.Generator(problem.device).manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draws, **place)

        self.x, self.g = drawn(size.m, size.k).requires_grad_(), drawn(size.m, size.n)
        self.index = torch.randint(size.experts, (size.m,), generator=draws, device=problem.device)
        self.lora_A = drawn(size.experts, size.r, size.k) / size.k**0.5
        self.lora_B = drawn(size.experts, size.n, size.r)
        weight = drawn(size.experts, size.n, size.k) / size.k**0.5
        self.frozen = FrozenExperts(weight, self.index)


class FrozenExperts(nn.Module):
    """Experts without adapters, as fast as torch has them: the rows sorted once, one grouped product.

    Where grouped_mm does not compute in the dtype, each expert has a product of its own.
    """

    def __init__(self, weight: Tensor, index: Tensor) -> None:
        super().__init__()
        self.weight, self.index = nn.Parameter(weight, requires_grad=False), index

    def forward(self, x: Tensor) -> Tensor:
        """``W_e x_i`` of each row."""
        order = torch.argsort(self.index, stable=True)
        rows, counts = x.index_select(0, order), torch.bincount(self.index, minlength=len(self.weight))
        if x.dtype == torch.float64:
            parts = torch.split(rows, counts.tolist())
            y = torch.cat([F.linear(part, weight) for part, weight in zip(parts, self.weight, strict=True)])
        else:
            y = F.grouped_mm(rows, self.weight.mT, offs=counts.cumsum(0).to(torch.int32))
        return torch.empty_like(y).index_copy(0, order, y)


class GroupedLayer(nn.Module):
    """A target's `lora_grouped_linear` and its operands as a layer."""

    def __init__(self, function: Any, operands: ExpertOperands) -> None:
        super().__init__()
        self.function, self.index = function, operands.index
        self.weight = nn.Parameter(operands.frozen.weight.detach().clone(), requires_grad=False)
        self.lora_A, self.lora_B = nn.Parameter(operands.lora_A.clone()), nn.Parameter(operands.lora_B.clone())

    def forward(self, x: Tensor) -> Any:
        """The output of the function."""
        return self.function(x, self.index, self.weight, None, self.lora_A, self.lora_B, SCALE)


def built(contender: Contender, operands: ExpertOperands) -> nn.Module:
    """The layer of a contender, with the operands' values."""
    return GroupedLayer(getattr(contender.target.thing, contender.subject), operands)


class ExpertAgreement:
    """The expected results on the operands of a problem, and the comparison of layers with all of them."""

    def __init__(self, problem: Problem, operands: ExpertOperands) -> None:
        self.problem, self.operands = problem, operands

    def check(self, layer: Any) -> float:
        """Run the layer once; return the worst error ÷ budget.

        Raises:
            Violation: naming the wrong result.
        """
        x = self.operands.x
        y = layer(x)
        y.backward(self.operands.g)
        results = {"y": y.detach(), "dX": x.grad, "dA": layer.lora_A.grad, "dB": layer.lora_B.grad}
        x.grad = layer.lora_A.grad = layer.lora_B.grad = None
        return worst_ratio(results, self.expected)

    @cached_property
    def expected(self) -> dict[str, Expected]:
        """The value of each result by the oracle of the clauses on grouped layers, over the timed operands."""
        timed, dtype = self.operands, dtype_named(self.problem.dtype)
        tensors = {"x": timed.x, "g": timed.g, "lora_A": timed.lora_A, "lora_B": timed.lora_B}
        values = {name: numbers(t) for name, t in (tensors | {"weight": timed.frozen.weight}).items()}
        grouped: Any = SimpleNamespace(
            case=SimpleNamespace(scale=SCALE, experts=self.problem.size.experts, base=True),
            values=values,
            rows=values.__getitem__,
            index=timed.index.cpu().numpy(),
            present=np.ones(self.problem.size.m, dtype=bool),
            rounding=Rounding(dtype, dtype),
            exact=False,
        )
        grouped.dtype = grouped.adapter_dtype = grouped.computed_in = dtype
        oracle = Oracle(grouped)
        return {"y": oracle.y, "dX": oracle.dX, "dA": oracle.dA, "dB": oracle.dB}
