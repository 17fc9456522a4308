"""Merging a DoRA layer makes its weight `m′ ⊙ (W + s·B A)`, and unmerging restores W."""

from __future__ import annotations

import numpy as np
import torch

from conformance.cases.linear_case import LinearCase
from conformance.clauses.dora.oracle import DORA, DoraOracle, built, oracle_of
from conformance.clauses.linear_and_layer.side_effects import refilled
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import Array, numbers
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import MAGNITUDE
from conformance.target.calls import calling
from conformance.target.subject import Instance, Subject

MERGE = DORA.narrowed(training=(False, True))
NEEDS = ("LinearLoRA.merge", "LinearLoRA.unmerge")
NAMES = ("lora_B", MAGNITUDE, "lora_A", "weight")


def merged(subject: Subject, case: LinearCase, times: int) -> tuple[Instance, DoraOracle]:
    """A DoRA layer with the case's operands after `times` calls of `merge()`, and its oracle."""
    instance, oracle = built(subject, case)
    for _ in range(times):
        with calling(f"{subject.name}(use_dora=True).merge()"):
            instance.module.merge()
    return instance, oracle


def merged_weight(oracle: DoraOracle) -> Expected:
    """`m′ ⊙ (W + s·B A)`; its budget counts the stores of B A, its scaled form, the sum and the product."""
    how, s = oracle.how, abs(oracle.scale)
    value = oracle.adapted * oracle.factor[:, None]
    update = oracle.scale * oracle.up @ oracle.down
    absolute = s * (np.abs(oracle.up) @ np.abs(oracle.down))
    unit = max(how.unit, how.adapter_unit)
    inside = how.accumulation(len(oracle.down)) * (absolute + np.abs(oracle.weight))
    inside = inside + unit * (2 * np.abs(update) + np.abs(oracle.adapted) + 2 * s * how.stored(oracle.up, oracle.down))
    allowed = inside * np.abs(oracle.factor)[:, None] + np.abs(value) * (oracle.relative[:, None] + 2 * unit)
    terms = {"base": oracle.weight * oracle.factor[:, None], "adapter": update * oracle.factor[:, None]}
    return Expected("the merged weight", value, allowed + 4 * how.step, oracle.operands.dtype, terms)


@clause(
    "DORA-MERGE",
    sentence="""Merging sets the weight to W′ = m′ ⊙ (W + s·B A), so that y = x W′ᵀ + b; merging twice equals
    merging once, and merging again after unmerging uses new values of any one of W, A, B and the magnitude.""",
    cases=MERGE,
    needs=NEEDS,
    feature="merging",
    weight=0.5,
)
def test_merged(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = merged(subject, case, times=1 + case.seed % 2)
    ratio = judge(instance.module.weight.detach(), merged_weight(oracle))
    with torch.no_grad():
        first = worst(ratio, judge(instance.forward(), merged_output(oracle)))
        oracle = _changed(subject, instance, oracle, NAMES[case.seed % len(NAMES)])
        with calling(f"{subject.name}(use_dora=True).merge()"):
            instance.module.merge()
        return worst(first, judge(instance.module.weight.detach(), merged_weight(oracle)))


def _changed(subject: Subject, instance: Instance, oracle: DoraOracle, name: str) -> DoraOracle:
    """Unmerge a layer and give one operand new values; the oracle of the layer then."""
    with calling(f"{subject.name}(use_dora=True).unmerge()"):
        instance.module.unmerge()
    new = refilled(subject, oracle.operands, oracle.operands.case.seed + 1, (name,))
    magnitude = instance.tensors[MAGNITUDE]
    if name == MAGNITUDE:
        magnitude.mul_(2)
    else:
        instance.tensors[name].copy_(new.placed[name].tensor)
    # W again, because unmerging may have rounded it
    instance.tensors["weight"].copy_(torch.from_numpy(new.values["weight"]))
    return oracle_of(subject, new, numbers(magnitude))


def merged_output(oracle: DoraOracle) -> Expected:
    """The y of a merged layer; its budget includes the merged weight's error, carried through x."""
    y, weight = oracle.y(), merged_weight(oracle)
    assert y.budget is not None
    assert weight.budget is not None
    through: Array = np.sqrt(oracle.x**2 @ (weight.budget**2).T).reshape(y.value.shape)
    return Expected("y of the merged layer", y.value, y.budget + through, y.dtype, y.terms)


@clause(
    "DORA-UNMERGE",
    sentence="""Unmerging a DoRA layer restores W within 2u·|W| + 4u·|W + s·B A|, and y is then that of the layer
    before merging.""",
    cases=MERGE,
    needs=NEEDS,
    feature="merging",
    weight=0.5,
)
def test_unmerged(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = merged(subject, case, times=1)
    with calling(f"{subject.name}(use_dora=True).unmerge()"):
        instance.module.unmerge()
    # if W is not kept: one store each of W + s·B A, m′ times it and the quotient, two for subtracting s·B A
    unit = max(oracle.how.unit, oracle.how.adapter_unit)
    allowed = unit * (2 * np.abs(oracle.weight) + 4 * np.abs(oracle.adapted))
    got = torch.from_numpy(numbers(instance.module.weight))
    restored = Expected("the unmerged weight", oracle.weight, allowed, torch.float64)
    with torch.no_grad():
        return worst(judge(got, restored), judge(instance.forward(), oracle.y()))
