"""The timed modules of experts: a frozen module, a target's `patch_moe_module` over a copy of it, the check of results.

Libraries that adapt experts mostly have no function of rows; what they have in common is a module of both projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.bench.agreement import worst_ratio
from conformance.bench.layers import SCALE, Contender, Problem
from conformance.clauses.experts.mixture import Mixture, adapted
from conformance.clauses.experts.mixture_case import MixtureCase
from conformance.clauses.experts.mixture_oracle import MixtureOracle
from conformance.clauses.experts.small_experts import GatedExperts
from conformance.errors import UsageError
from conformance.judgement.linear_oracle import Expected

FUNCTION, MODULE = "lora_grouped_linear", "patch_moe_module"


def with_common_subject(contenders: Sequence[Contender]) -> list[Contender]:
    """The contenders with the subject that all have: the function of rows, or else the module of experts.

    Raises:
        UsageError: if neither is common to all targets.
    """
    for name in (FUNCTION, MODULE):
        if all(contender.target.has(name) for contender in contenders):
            return [replace(contender, subject=name) for contender in contenders]
    each = ", ".join(f"{c.target.spec}: {FUNCTION if c.target.has(FUNCTION) else MODULE}" for c in contenders)
    raise UsageError(f"the targets have neither {FUNCTION} nor {MODULE} in common ({each}): measure them apart")


class GroupedExperts(GatedExperts):
    """Experts without adapters, as fast as torch has them: the rows sorted once, a grouped product for a projection.

    Where grouped_mm does not compute in the dtype, each expert has a product of its own. A library that changes the
    weights, as PEFT does, computes by this forward too.
    """

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of each token's experts."""
        slots, flat = top_k_index.shape[1], top_k_index.reshape(-1)
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=self.num_experts)
        h = self._rows(hidden_states.index_select(0, order // slots), "gate_up_proj", counts)
        f = self._rows(self._apply_gate(h), "down_proj", counts) * top_k_weights.reshape(-1, 1).index_select(0, order)
        return torch.zeros_like(hidden_states).index_add(0, order // slots, f)

    def _rows(self, x: Tensor, name: str, counts: Tensor) -> Tensor:
        weight = getattr(self, name)
        if x.dtype != torch.float64:
            return F.grouped_mm(x, weight.mT, offs=counts.cumsum(0).to(torch.int32))
        parts = torch.split(x, counts.tolist())
        return torch.cat([F.linear(part, own) for part, own in zip(parts, weight, strict=True)])


class TimedMixture(Mixture):
    """The numbers of a problem: M tokens [M, K], each with two experts of inner width N, and adapters of rank r."""

    def __init__(self, problem: Problem) -> None:
        size = problem.size
        case = MixtureCase(
            dtype=problem.dtype,
            m=size.m,
            k=size.k,
            n=size.n,
            r=size.r,
            experts=size.experts,
            slots=slots_of(size.experts),
            scale=SCALE,
        )
        super().__init__(case, problem.device)

    @property
    def experts(self) -> GroupedExperts:
        """A frozen module with the weights, another one each time."""
        case = self.case
        module = GroupedExperts(case.experts, case.k, case.n, case.slots, self.dtype).to(self.device)
        with torch.no_grad():
            for name in self.names:
                getattr(module, name).copy_(self.tensor(f"{name}.weight"))
        return module.requires_grad_(False)


def slots_of(experts: int) -> int:
    """The number of experts that a token chooses."""
    return min(2, experts)


class MixtureOperands:
    """x, g and the frozen module of a problem."""

    def __init__(self, problem: Problem) -> None:
        self.mixture = TimedMixture(problem)
        self.x, self.g = self.mixture.tensor("x").requires_grad_(), self.mixture.tensor("g")
        self.frozen = MixtureLayer(self.mixture.experts, self.mixture)


class MixtureLayer(nn.Module):
    """A module of experts with its routing as a layer of x; the router's weights get their gradient."""

    def __init__(self, experts: nn.Module, mixture: Mixture) -> None:
        super().__init__()
        self.experts = experts
        self.index = torch.from_numpy(mixture.index.copy()).to(mixture.device)
        self.p = nn.Parameter(mixture.tensor("p"))

    def forward(self, x: Tensor) -> Any:
        """The output of the module."""
        return self.experts(x, self.index, self.p)


class AdaptedLayer(MixtureLayer):
    """The module of a contender, with the adapters of the operands."""

    def __init__(self, contender: Contender, operands: MixtureOperands) -> None:
        self.instance = adapted(contender.target.subject(MODULE, "experts"), operands.mixture)
        super().__init__(self.instance.module, operands.mixture)

    def gradients(self) -> dict[str, Tensor | None]:
        """The gradients of the router's weights and of the adapters, by the names of the operands."""
        return self.instance.gradients() | {"p": self.p.grad}


class MixtureAgreement:
    """The expected results on the operands of a problem, and the comparison of layers with all of them."""

    def __init__(self, problem: Problem, operands: MixtureOperands) -> None:
        self.problem, self.operands = problem, operands

    def check(self, layer: Any) -> float:
        """Run the layer once; return the worst error ÷ budget.

        Raises:
            Violation: naming the wrong result.
        """
        x = self.operands.x
        y = layer(x)
        y.backward(self.operands.g)
        results = {"y": y.detach(), **layer.gradients(), "x": x.grad}
        x.grad = None
        worst = worst_ratio(results, self.expected)
        for parameter in layer.parameters():
            parameter.grad = None
        return worst

    @cached_property
    def expected(self) -> dict[str, Expected]:
        """The oracle's value of each result."""
        oracle, mixture = MixtureOracle(self.operands.mixture), self.operands.mixture
        sides = [f"{name}.{side}" for name in mixture.adapted for side in ("lora_A", "lora_B")]
        return {"y": oracle.y} | {name: oracle.gradient(name) for name in ("x", "p", *sides)}
