"""What a merged layer computes: its gradient, any layout, rank and scale, adapters of another dtype."""

from __future__ import annotations

import dataclasses
import math

from conformance.cases.case import Space
from conformance.cases.linear_case import LinearCase
from conformance.cases.memory_layout import LAYOUTS
from conformance.clauses.linear_and_layer.case_spaces import partnered
from conformance.clauses.linear_and_layer.judged_results import oracle_for
from conformance.clauses.merge.merged_layer import MERGE, judge_restored, merged, output
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import TRAINABLE, Subject

# integers: what is merged, and what unmerging restores, is then exact whatever the adapter's dtype
MIXED = Space(LinearCase, tame=partnered, **MERGE.narrowed(values=("integers", "cancelling")).values)


@clause(
    "MRG-BWD",
    sentence="A merged layer gives x its gradient, dX = g (W + s·B A), and the weight none.",
    cases=MERGE,
    weight=0.34,
)
def test_merged_backward(subject: Subject, case: LinearCase) -> float | None:
    instance = merged(subject, case)
    instance.require_grad(TRAINABLE)
    instance.backward(instance.forward())
    require(instance.module.weight.grad is None, "the merged weight is frozen and got a gradient")
    return judge(instance.gradient("x"), oracle_for(subject, instance.operands).dX)


@clause(
    "MRG-LAYOUT",
    sentence="""Merging does not depend on how W lies in memory nor on the shape of x, changes nothing beside W,
    and is undone there.""",
    cases=MERGE.narrowed(w=LAYOUTS[:-1], x=LAYOUTS[:-1], m=(2, 0, 3, 17), lead=("2d", "1d", "3d", "4d")),
    weight=0.5,
)
def test_merged_layouts(subject: Subject, case: LinearCase) -> float | None:
    instance = merged(subject, case)
    weight = instance.operands.placed["weight"]
    require(not weight.margins_changed(), f"merge() wrote beside the weight (layout {case.w})")
    ratio = judge(output(instance), oracle_for(subject, instance.operands).y)
    with calling(f"{subject.name}.unmerge()"):
        instance.module.unmerge()
    require(not weight.margins_changed(), f"unmerge() wrote beside the weight (layout {case.w})")
    return worst(ratio, judge_restored(instance, "the unmerged weight"))


@clause(
    "MRG-RANK",
    sentence="The merged update has the layer's own scale, alpha/√dim with use_rslora, and every rank of it.",
    cases=MERGE.narrowed(r=(4, 16, 70, 130), values=("normal",)),
    weight=0.5,
)
def test_merged_scaling(subject: Subject, case: LinearCase) -> float | None:
    rslora = bool(case.seed % 2)
    alpha = (16, 3, 32)[case.seed % 3]
    scale = alpha / (math.sqrt(case.r) if rslora else case.r)
    operands = subject.operands(dataclasses.replace(case, scale=scale))
    instance = subject.build(operands, alpha=alpha, use_rslora=rslora)
    with calling(f"{subject.name}(use_rslora={rslora}).merge()"):
        instance.module.merge()
    return judge(output(instance), oracle_for(subject, operands).y)


@clause(
    "MRG-MIXED",
    sentence="Where the adapter's dtype differs, the merged weight and y keep the layer's, and unmerging restores W.",
    cases=MIXED,
    weight=0.5,
)
def test_merged_adapters_of_another_dtype(subject: Subject, case: LinearCase) -> float | None:
    instance = merged(subject, case)
    operands, values = instance.operands, instance.operands.values
    update = operands.scale * (values["lora_B"] @ values["lora_A"])
    terms = {"base": values["weight"], "adapter": update}
    expected = Expected("the merged weight", values["weight"] + update, None, operands.dtype, terms)
    weight = judge(instance.module.weight.detach(), expected)
    y = judge(output(instance), oracle_for(subject, operands).y)
    with calling(f"{subject.name}.unmerge()"):
        instance.module.unmerge()
    return worst(weight, y, judge_restored(instance, "the unmerged weight"))
