"""The results of a merged layer: dX, layouts, rank and scale, adapters of another dtype."""

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

# with integers merging and unmerging are exact, whatever the adapter's dtype
MIXED = Space(LinearCase, tame=partnered, **MERGE.narrowed(values=("integers", "cancelling")).values)


@clause(
    "MRG-BWD",
    sentence="Backward through a merged layer gives dX = g (W + s·B A), and no gradient for the weight.",
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
    sentence="""For any strides of W, and any strides and leading dimensions of x, merging gives the right y and
    unmerging restores W; neither writes memory outside W.""",
    needs=("LinearLoRA.unmerge",),
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
    sentence="""The merged update uses the layer's own scale, alpha/dim or alpha/√dim with use_rslora, and includes
    every rank.""",
    cases=MERGE.narrowed(r=(4, 16, 70, 130), values=("normal",)),
    weight=0.5,
)
def test_merged_scaling(subject: Subject, case: LinearCase) -> float | None:
    rslora = bool(case.seed % 2) and subject.takes("use_rslora")
    alpha = (16, 3, 32)[case.seed % 3]
    scale = alpha / (math.sqrt(case.r) if rslora else case.r)
    operands = subject.operands(dataclasses.replace(case, scale=scale))
    instance = subject.build(operands, alpha=alpha, use_rslora=rslora)
    with calling(f"{subject.name}(use_rslora={rslora}).merge()"):
        instance.module.merge()
    return judge(output(instance), oracle_for(subject, operands).y)


@clause(
    "MRG-MIXED",
    sentence="""When the adapter's dtype differs from the layer's, the merged weight and y keep the layer's dtype,
    and unmerging restores W.""",
    feature="adapter_dtype",
    needs=("LinearLoRA.unmerge",),
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
