"""The timed batches of several adapters: a target's `lora_batched_linear` as a layer, and the check of its results."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conformance.bench.agreement import Agreement, Part
from conformance.bench.layers import SCALE, Operands, Problem
from conformance.clauses.batched.batch import Batch
from conformance.clauses.batched.case import BatchedCase
from conformance.clauses.batched.oracle import Oracle
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import dtype_named


class BatchedOperands(Operands):
    """The operands of a problem with its number of adapters, A [L, r, K] and B [L, N, r], mixed over the rows.

    Attributes:
        index: [M], the adapter of each row, in random order; one row of L + 1 has none.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        size, adapters = problem.size, problem.adapters
        draws = torch.Generator().manual_seed(1)
        place: Any = {"dtype": dtype_named(problem.dtype), "device": problem.device}

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draws).to(**place)

        self.lora_A = drawn(adapters, size.r, size.k) / size.k**0.5
        self.lora_B = drawn(adapters, size.n, size.r)
        spread = torch.randperm(size.m, generator=draws) % (adapters + 1) - 1
        self.index = spread.to(problem.device)
        self.scale = torch.full((adapters,), SCALE, device=problem.device)

    def layer(self, function: Any) -> nn.Module:
        """The function with these operands as a layer."""
        return BatchedLayer(function, self)


class BatchedLayer(nn.Module):
    """A target's `lora_batched_linear`, its operands and the adapter of each row as a layer."""

    def __init__(self, function: Any, operands: BatchedOperands) -> None:
        super().__init__()
        self.function, self.index, self.scales = function, operands.index, operands.scale
        self.base = copy.deepcopy(operands.frozen)
        self.lora_A, self.lora_B = nn.Parameter(operands.lora_A.clone()), nn.Parameter(operands.lora_B.clone())

    def forward(self, x: Tensor) -> Any:
        """The output of the function."""
        return self.function(x, self.index, self.base.weight, self.base.bias, self.lora_A, self.lora_B, self.scales)


class BatchedAgreement(Agreement):
    """The expected results of a batch, each on a few indices of one dimension."""

    layouts: Mapping[str, tuple[str, int, str]] = MappingProxyType(
        {"y": ("g", 0, "m"), "dX": ("x", 0, "m"), "dA": ("lora_A", 2, "k"), "dB": ("lora_B", 1, "n")}
    )

    @cached_property
    def expected(self) -> dict[str, Expected]:
        """The oracle's value of each result on its part."""
        oracles = {d: Oracle(_PartOfBatch(self.problem, self.timed, d, self.kept(d))) for d in "mkn"}
        return {name: getattr(oracles[dimension], name) for name, (_, _, dimension) in self.layouts.items()}


class _PartOfBatch(Batch):
    """The timed operands restricted to a few indices of one dimension, as a batch of the oracle."""

    def __init__(self, problem: Problem, timed: Any, dimension: str, kept: Tensor) -> None:
        part = Part(problem, timed, dimension, kept, {"lora_A": "lrk", "lora_B": "lnr"})
        size = {name: getattr(part.case, name) for name in "mknr"}
        self.case = BatchedCase(dtype=problem.dtype, bias=True, values="normal", adapters=problem.adapters, **size)
        self.device, self.values = problem.device, part.values
        self.dtype = self.adapter_dtype = self.computed_in = dtype_named(problem.dtype)
        index = timed.index.cpu().numpy()
        self.index = index[kept.cpu().numpy()] if dimension == "m" else index
        self.ranks, self.scales = np.full(problem.adapters, problem.size.r), [SCALE] * problem.adapters
