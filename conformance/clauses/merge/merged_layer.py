"""A merged layer built from a case, its output, and the allowed error of the unmerged weight."""

from __future__ import annotations

import numpy as np
import torch

from conformance.cases.linear_case import LinearCase
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import Expected
from conformance.numerics import budget
from conformance.numerics.formats import Array, numbers
from conformance.target.calls import calling
from conformance.target.subject import Instance, Subject

MERGE = SMALL.narrowed(training=(True, False), scale=(2.0, 0.5, -1.0, 3.0))


def merged(subject: Subject, case: LinearCase, times: int = 1) -> Instance:
    """A layer with the case's operands after `times` calls of `merge()`."""
    instance = subject.build(subject.operands(case))
    for _ in range(times):
        with calling(f"{subject.name}.merge()"):
            instance.module.merge()
    return instance


def output(instance: Instance) -> torch.Tensor:
    """The layer's output under no_grad, as at inference."""
    with torch.no_grad():
        return instance.forward()


def weight_allowance(instance: Instance) -> Array:
    """The allowed error of the unmerged weight; zero for exact integers."""
    operands = instance.operands
    values = operands.values
    update = operands.scale * (values["lora_B"] @ values["lora_A"])
    allowed = budget.unmerged_weight(values["weight"], update, operands.scale, operands.dtype)
    return np.zeros_like(allowed) if operands.exact else allowed


def judge_restored(instance: Instance, what: str) -> float | None:
    """Judge whether the weight has its old value again, within `weight_allowance`."""
    allowed = weight_allowance(instance)
    before = instance.operands.values["weight"]
    got = numbers(instance.module.weight)
    exact = instance.operands.exact
    return judge(
        torch.from_numpy(got), Expected(what, before, None if exact else allowed, torch.float64, certified=exact)
    )
