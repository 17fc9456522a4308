"""The state of a merged layer: trainable parameters, copies, conversion, train and eval."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np

from conformance.cases.linear_case import LinearCase
from conformance.clauses.linear_and_layer.judged_results import oracle_for
from conformance.clauses.merge.merged_layer import MERGE, judge_restored, merged, output
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.numerics.formats import dtype_named, numbers
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.subject import Instance, Subject


def unmerged(subject: Subject, instance: Instance) -> Instance:
    """The same layer after `unmerge()`."""
    with calling(f"{subject.name}.unmerge()"):
        instance.module.unmerge()
    return instance


@clause(
    "MRG-FROZEN",
    sentence="Merging and unmerging keep W frozen, and keep lora_A and lora_B the same trainable Parameters.",
    why="An optimiser that holds the old Parameters would no longer train the layer.",
    cases=MERGE,
    dtypes=("float32", "bfloat16"),
    weight=0.25,
)
def test_merging_changes_nothing_trained(subject: Subject, case: LinearCase) -> float | None:
    instance = merged(subject, case)
    layer = instance.module
    require(not layer.weight.requires_grad, "the weight requires grad after merge(): expected it frozen")
    unmerged(subject, instance)
    require(not layer.weight.requires_grad, "the weight requires grad after unmerge(): expected it frozen")
    for name in ("lora_A", "lora_B"):
        parameter = adapter_of(layer, name)
        same = parameter is instance.tensors[name]
        require(same, f"{name}.weight is another parameter after unmerge(): an optimiser trains the one before")
        require(parameter.requires_grad, f"{name}.weight does not require grad after unmerge()")
    return None


@clause(
    "MRG-COPY",
    sentence="""A copy of a merged layer, by deepcopy or pickle, is merged too: it computes the same y, and
    unmerging it restores its own W and leaves the original as it is.""",
    cases=MERGE,
    weight=0.34,
)
def test_copy_of_a_merged_layer(subject: Subject, case: LinearCase) -> float | None:
    instance = merged(subject, case)
    with calling(f"copying a merged {subject.name}"):
        deep = bool(case.seed % 2) or subject.follows("pickling", "absent")
        layer = copy.deepcopy(instance.module) if deep else pickle.loads(pickle.dumps(instance.module))
    other = dataclasses.replace(instance, call=layer, module=layer)
    y = oracle_for(subject, instance.operands).y
    first = judge(output(other), dataclasses.replace(y, name="y of the copy"))
    restored = judge_restored(unmerged(subject, other), "the unmerged weight of the copy")
    after = judge(output(other), dataclasses.replace(y, name="y of the unmerged copy"))
    return worst(first, restored, after, judge(output(instance), y))


@clause(
    "MRG-TO",
    sentence="After .to(dtype), a merged layer computes in that dtype, and unmerging restores W in that dtype.",
    cases=MERGE.narrowed(values=("integers",)),
    dtypes=("bfloat16", "float16"),
    weight=0.5,
)
def test_conversion_of_a_merged_layer(subject: Subject, case: LinearCase) -> float | None:
    instance = merged(subject, case)
    wide = subject.operands(dataclasses.replace(case, dtype="float64"))
    # the small integers of the 16-bit case are the same numbers in float64
    wide.values = instance.operands.values
    with calling(f"{subject.name}.to(torch.float64)"):
        layer = instance.module.to(dtype_named("float64"))
    other = Instance(layer, {"x": wide.placed["x"].tensor}, wide, module=layer)
    y = oracle_for(subject, wide).y
    ratio = judge(output(other), y)
    unmerged(subject, other)
    restored = judge_restored(other, "the unmerged weight")
    require(
        layer.weight.dtype == wide.dtype, f"the unmerged weight has dtype {layer.weight.dtype}: expected {wide.dtype}"
    )
    return worst(ratio, restored, judge(output(other), dataclasses.replace(y, name="y after unmerge()")))


@clause(
    "MRG-TRAIN",
    sentence="train() and eval() change neither the y of a merged layer nor the weight that unmerging restores.",
    cases=MERGE,
    weight=0.34,
)
def test_modes_of_a_merged_layer(subject: Subject, case: LinearCase) -> float | None:
    instance = merged(subject, case)
    y = oracle_for(subject, instance.operands).y
    ratios: list[float | None] = []
    for training in (False, True, False):
        with calling(f"{subject.name}.train({training})"):
            instance.module.train(training)
        ratios.append(judge(output(instance), dataclasses.replace(y, name=f"y of the merged layer, train({training})")))
    ratios.append(judge_restored(unmerged(subject, instance), "the unmerged weight"))
    same = np.array_equal(numbers(instance.tensors["lora_A"]), instance.operands.values["lora_A"])
    require(same, "lora_A has changed")
    return worst(*ratios)
