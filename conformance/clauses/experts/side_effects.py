"""Side effects of grouped layers: memory and results that a call must not change, settings, determinism."""

from __future__ import annotations

import dataclasses

import torch

from conformance.clauses.experts.case import LAYOUT, SMALL, GroupedCase
from conformance.clauses.experts.forward import FUNCTIONS, PLAIN, judged
from conformance.clauses.experts.grouped import TRAINABLE, Grouped, bound, run
from conformance.clauses.experts.oracle import Oracle
from conformance.isolation.process_state import kept
from conformance.judgement.judge import judge, worst
from conformance.judgement.operand_effects import copied, require_equal_runs, require_margins, require_unmodified
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject


@clause(
    "EXP-MEM-INPUTS",
    sentence="Forward and backward do not modify x, the indices, the upstream gradient or any operand.",
    cases=SMALL,
    subjects=FUNCTIONS,
    weight=0.5,
)
def test_grouped_inputs_unmodified(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    before = grouped.routing.clone()
    run(subject, grouped)
    require(torch.equal(grouped.routing, before), "the indices or offsets were modified in place")
    require_unmodified(grouped.placed)
    return None


@clause(
    "EXP-MEM-MARGINS",
    sentence="Forward and backward read and write no memory outside the operands.",
    cases=LAYOUT,
    subjects=FUNCTIONS,
    weight=0.5,
)
def test_grouped_margins_untouched(subject: Subject, case: GroupedCase) -> float | None:
    if subject.name not in PLAIN:
        case = dataclasses.replace(case, lead="2d")
    grouped = Grouped(subject, case)
    instance = run(subject, grouped)
    require_margins(grouped.placed, {name: instance.gradient(name) for name in TRAINABLE})
    return None


@clause(
    "EXP-MEM-OUTPUT",
    sentence="""The caller may modify y in place: no operand changes, and the gradients are those of the modified
    output.""",
    cases=SMALL,
    subjects=FUNCTIONS,
    weight=0.34,
)
def test_grouped_output_belongs_to_the_caller(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    instance = bound(subject, grouped)
    instance.require_grad()
    with calling("y.mul_(2)"):
        y = instance.forward().mul_(2)
    require_unmodified(grouped.placed, "modifying y in place")
    instance.backward(y)
    oracle = Oracle(grouped)
    ratios = []
    for name in TRAINABLE:
        once = oracle.gradient(name)
        doubled = {"value": 2 * once.value, "budget": None if once.budget is None else 2 * once.budget}
        terms = {term: 2 * part for term, part in once.terms.items()}
        ratios.append(judge(instance.gradient(name), dataclasses.replace(once, **doubled, terms=terms)))  # type: ignore[arg-type]
    return worst(*ratios)


@clause(
    "EXP-MEM-LATER",
    sentence="""Later calls do not change the output of an earlier call, the tensors it saved for backward, or its
    gradients.""",
    cases=SMALL,
    subjects=FUNCTIONS,
    weight=0.34,
)
def test_grouped_later_calls(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    instance = bound(subject, grouped)
    instance.require_grad()
    y = instance.forward()
    run(subject, Grouped(subject, dataclasses.replace(case, seed=case.seed + 1)))
    instance.backward(y)
    oracle = Oracle(grouped)
    return worst(judge(y, oracle.y), *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))


@clause(
    "EXP-MEM-REFILL",
    sentence="""When operands or indices get new values in place, the next call gives the results of the new values:
    nothing is kept by the address or the version of a tensor, the routing least of all.""",
    cases=SMALL.narrowed(values=("normal",)),
    dtypes=("float32", "bfloat16"),
    subjects=FUNCTIONS,
    weight=0.5,
)
def test_grouped_refilled(subject: Subject, case: GroupedCase) -> float | None:
    first, ratios = Grouped(subject, case), []
    instance = run(subject, first)
    for i, names in enumerate((("x", "lora_A", "lora_B", "weight", "bias", "g"), ("routing",))):
        new = Grouped(subject, dataclasses.replace(case, seed=case.seed + 1 + i))
        if "routing" not in names:
            new.index, new.routing = first.index, first.routing
        new.values |= {name: value for name, value in instance.grouped.values.items() if name not in names}
        with torch.no_grad():
            for name, placed in first.placed.items():
                if name in names:
                    placed.tensor.copy_(new.placed[name].tensor)
                placed.tensor.grad = None
            first.routing.copy_(new.routing)
        instance.grouped = new
        ratios.append(judged(instance))
    return worst(*ratios)


@clause(
    "EXP-DET",
    sentence="Repeating a call gives the same output and gradients bit for bit.",
    cases=SMALL,
    subjects=FUNCTIONS,
    weight=0.34,
)
def test_grouped_determinism(subject: Subject, case: GroupedCase) -> float | None:
    runs = []
    for _ in range(2):
        instance = bound(subject, Grouped(subject, case))
        instance.require_grad()
        y = instance.forward()
        instance.backward(y)
        runs.append(copied({"y": y}, {name: instance.gradient(name) for name in TRAINABLE}))
    require_equal_runs(*runs)
    return None


@clause(
    "EXP-SIDE",
    sentence="Forward and backward change no setting of the process and no random state.",
    cases=SMALL,
    subjects=FUNCTIONS,
    weight=0.25,
)
def test_grouped_settings_kept(subject: Subject, case: GroupedCase) -> float | None:
    instance = bound(subject, Grouped(subject, case))
    instance.require_grad()
    with kept("the forward pass"):
        y = instance.forward()
    with kept("the backward pass"):
        instance.backward(y)
    return None
