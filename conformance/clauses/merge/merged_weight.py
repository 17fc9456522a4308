"""The merged weight, the unmerged weight, the flag `merged` and the state_dict of a merged layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from conformance.cases.linear_case import LinearCase
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.clauses.linear_and_layer.side_effects import refilled
from conformance.clauses.merge.merged_layer import MERGE, judge_restored, merged, output, weight_allowance
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import TRAINABLE, Subject

EXACT = MERGE.narrowed(values=("integers", "cancelling"))  # unmerging restores these exactly
MERGED = ("weight", "lora_A", "lora_B")


@clause("MRG-FWD", sentence="A merged layer computes the same y as the adapter path.", cases=MERGE, weight=0.5)
def test_merged_output(subject: Subject, case: LinearCase) -> float | None:
    instance = merged(subject, case)
    return judge(output(instance), oracle_for(subject, instance.operands).y)


@clause(
    "MRG-WEIGHT",
    sentence="Merging sets the weight to W + s·B A and does not change the bias, lora_A or lora_B.",
    cases=MERGE,
)
def test_merged_weight(subject: Subject, case: LinearCase) -> float | None:
    instance = merged(subject, case)
    operands, values = instance.operands, instance.operands.values
    for name in ("lora_A", "lora_B", "bias"):
        if name in values and name in instance.tensors:
            same = np.array_equal(numbers(instance.tensors[name]), values[name])
            require(same, f"merge() changed {name}")
    return judge(instance.module.weight.detach(), oracle_for(subject, operands).merged_weight)


@clause(
    "MRG-TWICE",
    sentence="Merging twice equals merging once, and unmerging twice equals unmerging once.",
    needs=("LinearLoRA.unmerge",),
    cases=MERGE,
    weight=0.5,
)
def test_idempotent(subject: Subject, case: LinearCase) -> float | None:
    instance = merged(subject, case, times=2)
    y = dataclasses.replace(oracle_for(subject, instance.operands).y, name="y after two merges")
    first = judge(output(instance), y)
    for _ in range(2):
        with calling(f"{subject.name}.unmerge()"):
            instance.module.unmerge()
    restored = dataclasses.replace(y, name="y after two unmerges")
    return worst(first, judge(output(instance), restored), judge_restored(instance, "the weight after two unmerges"))


@clause(
    "MRG-UNMERGE",
    sentence="""Unmerging restores W within 2u·(|W| + |ΔW|), where u is the unit roundoff and ΔW = s·B A, and
    exactly with integer operands; y and the gradients are then those of the layer before merging.""",
    needs=("LinearLoRA.unmerge",),
    cases=MERGE,
    weight=0.5,
)
def test_unmerge(subject: Subject, case: LinearCase) -> float | None:
    instance = merged(subject, case)
    with calling(f"{subject.name}.unmerge()"):
        instance.module.unmerge()
    ratio = judge_restored(instance, "the unmerged weight")
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    instance.backward(y)
    oracle = oracle_for(subject, instance.operands)
    return worst(ratio, judge(y, oracle.y), judge_gradients(instance, oracle))


@clause(
    "MRG-REFILL",
    sentence="""After W, lora_A and lora_B get new values in place, all of them or only one, merging gives the W + s·B A
    of the new values, and unmerging restores the new W.""",
    why="Training goes on between two merges, of lora_B alone where lora_A is frozen.",
    needs=("LinearLoRA.unmerge",),
    cases=EXACT,
    weight=0.5,
)
def test_merged_again(subject: Subject, case: LinearCase) -> float | None:
    instance, ratios = merged(subject, case), []
    for i, names in enumerate((MERGED, *((name,) for name in MERGED))):
        new = refilled(subject, instance.operands, case.seed + 1 + i, names)
        W, A, B = (np.abs(new.values[name]) for name in MERGED)
        size = W + abs(new.scale) * (B @ A)
        if size.max() > new.exact_limit:
            continue  # of two draws together a sum is no exact integer of the dtype
        instance.operands = new
        with calling(f"{subject.name}.unmerge()"):
            instance.module.unmerge()
        with torch.no_grad():
            for name in names:
                instance.tensors[name].copy_(new.placed[name].tensor)
        with calling(f"{subject.name}.merge()"):
            instance.module.merge()
        expected = oracle_for(subject, new).merged_weight
        which = "all operands" if len(names) > 1 else names[0]
        expected = dataclasses.replace(expected, name=f"the merged weight after new values of {which}")
        ratios.append(judge(instance.module.weight.detach(), expected))
    with calling(f"{subject.name}.unmerge()"):
        instance.module.unmerge()
    return worst(*ratios, judge_restored(instance, "the unmerged weight, which got new values before the last merge"))


@clause(
    "MRG-UNTOUCHED",
    sentence="Unmerging a layer that was not merged changes nothing.",
    needs=("LinearLoRA.unmerge",),
    cases=MERGE,
    weight=0.34,
)
def test_unmerge_alone(subject: Subject, case: LinearCase) -> float | None:
    instance = subject.build(subject.operands(case))
    with calling(f"{subject.name}.unmerge()"):
        instance.module.unmerge()
    same = np.array_equal(numbers(instance.module.weight), instance.operands.values["weight"])
    require(same, "unmerge() of an unmerged layer changed the weight")
    return judge(output(instance), oracle_for(subject, instance.operands).y)


@clause(
    "MRG-FLAG",
    sentence="The attribute `merged` says whether the weight holds the update.",
    cases=MERGE,
    needs=("LinearLoRA.merged", "LinearLoRA.unmerge"),
    dtypes=("float32",),
    weight=0.2,
)
def test_flag(subject: Subject, case: LinearCase) -> float | None:
    layer: Any = subject.build(subject.operands(case)).module
    for step, wanted in (("the start", False), ("merge()", True), ("merge()", True), ("unmerge()", False)):
        if step.endswith("()"):
            with calling(f"{subject.name}.{step}"):
                getattr(layer, step[:-2])()
        require(bool(layer.merged) is wanted, f"merged is {layer.merged!r} after {step}: expected {wanted}")
    return None


@clause(
    "MRG-STATE",
    sentence="""The state_dict of a merged layer equals that of the unmerged layer, the weight within 2u·(|W| + |ΔW|);
    or, where the target declares so, it differs in the weight alone, which is W + ΔW.""",
    why="A layer that loads a merged weight together with lora_A and lora_B adds the update twice.",
    cases=MERGE,
    weight=0.34,
)
def test_state_dict_when_merged(subject: Subject, case: LinearCase) -> float | None:
    instance = subject.build(subject.operands(case))
    before = {name: value.detach().clone() for name, value in instance.module.state_dict().items()}
    with calling(f"{subject.name}.merge() and state_dict()"):
        instance.module.merge()
        after = instance.module.state_dict()
    same = sorted(after) == sorted(before)
    require(same, f"the merged state_dict has keys {sorted(after)}: expected {sorted(before)}")
    allowed = weight_allowance(instance)
    ratios = []
    for name, value in before.items():
        wanted = numbers(value)
        title = f"state_dict()[{name!r}] when merged"
        is_weight = wanted.shape == allowed.shape and name.endswith("weight") and "lora" not in name
        if is_weight and subject.follows("merged_state", "merged"):
            expected = dataclasses.replace(oracle_for(subject, instance.operands).merged_weight, name=title)
        else:
            limit = allowed if is_weight and not instance.operands.exact else None
            expected = Expected(title, wanted, limit, value.dtype, certified=False)
        ratios.append(judge(after[name], expected))
    return worst(*ratios)


@clause(
    "MRG-MODE",
    sentence="Dropout does not act on a merged layer, even in training.",
    feature="dropout",
    cases=MERGE.narrowed(dropout=(0.5,), position=("post", "pre"), training=(True,)),
    weight=0.34,
)
def test_merged_in_training(subject: Subject, case: LinearCase) -> float | None:
    instance = merged(subject, case)
    return judge(output(instance), oracle_for(subject, instance.operands).y)
