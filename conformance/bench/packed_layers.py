"""The timed layers on packed bases: a target's `packed_linear` with its adapter, and the operands it is judged by."""

from __future__ import annotations

import copy

import torch
from torch import nn

from conformance.bench.agreement import Agreement
from conformance.bench.layers import Contender, Operands, Problem, with_adapter
from conformance.clauses.quantised.packed_operands import decoded


def built(contender: Contender, problem: Problem, operands: Operands) -> tuple[nn.Module, Agreement]:
    """The adapted layer on the packed frozen weight, and the check of its results by the numbers that it stores.

    The adapter has the dtype of the problem, and so has the base product: the base has no compute dtype of its own.
    """
    target = contender.target
    base = target.thing.packed_linear(copy.deepcopy(operands.frozen), problem.base)
    numbers, _ = decoded(target.thing, base, (problem.size.n, problem.size.k))
    layer = with_adapter(target.thing.patch_linear_module, base, problem, operands)
    judged = copy.copy(operands)
    judged.frozen = copy.deepcopy(operands.frozen)
    with torch.no_grad():  # rounded once to the dtype of the product
        judged.frozen.weight.copy_(torch.from_numpy(numbers))
    return layer, Agreement(problem, judged)
