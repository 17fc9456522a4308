"""A merged layer from a case, what it computes, and what unmerging may leave behind."""

from __future__ import annotations

import numpy as np
import torch

from conformance.cases.linear_case import LinearCase
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import Array, format_of, numbers
from conformance.target.calls import calling
from conformance.target.subject import Instance, Subject

MERGE = SMALL.narrowed(training=(True, False), scale=(2.0, 0.5, -1.0, 3.0))


def merged(subject: Subject, case: LinearCase, times: int = 1) -> Instance:
    """A layer with the case's operands, merged so many times."""
    instance = subject.build(subject.operands(case))
    for _ in range(times):
        with calling(f"{subject.name}.merge()"):
            instance.module.merge()
    return instance


def output(instance: Instance) -> torch.Tensor:
    """The layer's output without a graph, as at inference."""
    with torch.no_grad():
        return instance.forward()


def weight_allowance(instance: Instance) -> Array:
    """What unmerging may leave behind: `2u·(|W| + |ΔW|)` per element; nothing in the exact lane."""
    operands = instance.operands
    values = operands.values
    update = operands.scale * (values["lora_B"] @ values["lora_A"])
    unit = 0.0 if operands.exact else format_of(operands.dtype).unit
    return np.asarray(2 * unit * (np.abs(values["weight"]) + np.abs(update)))


def judge_restored(instance: Instance, what: str) -> float | None:
    """Judge that the weight is back at its old value within the allowance."""
    allowed = weight_allowance(instance)
    before = instance.operands.values["weight"]
    got = numbers(instance.module.weight)
    exact = instance.operands.exact
    return judge(
        torch.from_numpy(got), Expected(what, before, None if exact else allowed, torch.float64, certified=exact)
    )
