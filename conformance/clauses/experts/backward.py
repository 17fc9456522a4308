"""The backward pass of grouped layers: each gradient, subsets, accumulation, repetition, second derivatives."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conformance.clauses.experts.case import GROUPED, NORMAL, SMALL, GroupedCase
from conformance.clauses.experts.forward import FUNCTIONS, judged_all
from conformance.clauses.experts.grouped import TRAINABLE, Bound, Grouped, bound, run
from conformance.clauses.experts.oracle import Oracle
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import Inconclusive, require
from conformance.judgement.second_derivatives import judge_second_derivatives, second_derivatives
from conformance.numerics.formats import format_of
from conformance.specification.clause import clause
from conformance.target.expected_errors import unless_it_raises
from conformance.target.subject import Subject
from reference.grouped_linear import lora_grouped_linear, lora_grouped_linear_sorted

TRAINED = GROUPED.narrowed(training=(True,))
PLAIN = {"lora_grouped_linear": lora_grouped_linear, "lora_grouped_linear_sorted": lora_grouped_linear_sorted}


def judged_gradient(subject: Subject, case: GroupedCase, name: str) -> float | None:
    """Judge the gradient of one operand, where all require grad."""
    grouped = Grouped(subject, case)
    return judge(run(subject, grouped).gradient(name), Oracle(grouped).gradient(name))


@clause(
    "EXP-BWD-DX",
    sentence="Row i with expert e has dX_i = g_i W_e + s·(g_i B_e) A_e, in the dtype of x.",
    cases=TRAINED,
    subjects=FUNCTIONS,
)
def test_grouped_gradient_of_x(subject: Subject, case: GroupedCase) -> float | None:
    return judged_gradient(subject, case, "x")


@clause(
    "EXP-BWD-DA",
    sentence="Expert e has dA_e = s·(g B_e)ᵀ x over its own rows, in the dtype of lora_A.",
    cases=TRAINED,
    subjects=FUNCTIONS,
)
def test_grouped_gradient_of_lora_A(subject: Subject, case: GroupedCase) -> float | None:
    return judged_gradient(subject, case, "lora_A")


@clause(
    "EXP-BWD-DB",
    sentence="Expert e has dB_e = s·gᵀ (x A_eᵀ) over its own rows, in the dtype of lora_B.",
    cases=TRAINED,
    subjects=FUNCTIONS,
)
def test_grouped_gradient_of_lora_B(subject: Subject, case: GroupedCase) -> float | None:
    return judged_gradient(subject, case, "lora_B")


@clause(
    "EXP-BWD-NEEDS",
    sentence="""Any subset of x, lora_A and lora_B may require grad: its members get their gradients, the others get
    none.""",
    cases=SMALL,
    subjects=FUNCTIONS,
    weight=0.75,
)
def test_grouped_subsets(subject: Subject, case: GroupedCase) -> float | None:
    subset = 1 + case.seed % 7
    needs = tuple(name for place, name in enumerate(TRAINABLE) if subset >> place & 1)
    grouped = Grouped(subject, case)
    instance, oracle = run(subject, grouped, needs), Oracle(grouped)
    for name in TRAINABLE:
        if name not in needs:
            require(instance.gradient(name) is None, f"{name} got a gradient although it does not require one")
    return worst(*(judge(instance.gradient(name), oracle.gradient(name)) for name in needs))


@clause(
    "EXP-BWD-FROZEN",
    sentence="The weights and biases are frozen: they get no gradient, even when they require grad.",
    cases=SMALL.narrowed(base=(True,)),
    subjects=FUNCTIONS,
    weight=0.34,
)
def test_grouped_weights_are_frozen(subject: Subject, case: GroupedCase) -> float | None:
    instance = run(subject, Grouped(subject, case), (*TRAINABLE, "weight", "bias"))
    for name in ("weight", "bias"):
        if name in instance.tensors:
            require(instance.gradient(name) is None, f"{name} got a gradient although it is frozen")
    return None


@clause(
    "EXP-BWD-ACCUM",
    sentence="Backward adds to a gradient that already exists, of an idle expert too.",
    cases=SMALL,
    subjects=FUNCTIONS,
    weight=0.5,
)
def test_grouped_accumulation(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    instance = bound(subject, grouped)
    instance.require_grad()
    for name in TRAINABLE:
        instance.tensors[name].grad = torch.full_like(instance.tensors[name], 3.0)
    instance.backward(instance.forward())
    oracle, ratios = Oracle(grouped), []
    for name in TRAINABLE:
        expected = oracle.gradient(name)
        if expected.budget is None and np.abs(expected.value).max(initial=0) + 3 > format_of(expected.dtype).exact:
            raise Inconclusive("the sum is no exact integer of the dtype")
        total = expected.value + 3.0
        store = format_of(expected.dtype).unit * np.abs(total)
        added = dataclasses.replace(
            expected,
            name=f"{expected.name} added to 3",
            value=total,
            budget=None if expected.budget is None else expected.budget + store,
            terms={"existing": np.full_like(total, 3.0), "new": expected.value} if expected.value.any() else {},
        )
        ratios.append(judge(instance.gradient(name), added))
    return worst(*ratios)


@clause(
    "EXP-BWD-TWICE",
    sentence="Two backward passes over a retained graph give the same gradients.",
    cases=SMALL,
    subjects=FUNCTIONS,
    weight=0.34,
)
def test_grouped_backward_twice(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    instance, oracle, ratios = bound(subject, grouped), Oracle(grouped), []
    instance.require_grad()
    y = instance.forward()
    for time in ("first", "second"):
        for name in TRAINABLE:
            instance.tensors[name].grad = None
        instance.backward(y, retain_graph=True)
        for name in TRAINABLE:
            expected = oracle.gradient(name)
            renamed = dataclasses.replace(expected, name=f"{time} {expected.name}")
            ratios.append(judge(instance.gradient(name), renamed))
    return worst(*ratios)


@clause(
    "EXP-BWD-SUM",
    sentence="The upstream gradient may be one expanded number, as for y.sum(); all gradients are right.",
    cases=NORMAL,
    subjects=FUNCTIONS,
    weight=0.34,
)
def test_grouped_gradient_of_a_sum(subject: Subject, case: GroupedCase) -> float | None:
    # the errors of equal elements add up, as in expanded operands
    grouped = Grouped(subject, dataclasses.replace(case, g="expanded"))
    shape = grouped.values["g"].shape
    grouped.values["g"] = np.full(shape, 0.5)
    number = torch.full((), 0.5, dtype=grouped.dtype, device=grouped.device)
    grouped.placed["g"] = dataclasses.replace(grouped.placed["g"], tensor=number.expand(shape))
    return judged_all(subject, grouped)


@clause(
    "EXP-BWD-DOUBLE",
    sentence="Double backward gives the right derivatives of a gradient or raises; it is never silently wrong.",
    cases=NORMAL.narrowed(m=(5, 7), k=(3, 8), n=(5,), r=(1, 4), experts=(2, 3)),
    dtypes=("float64",),
    subjects=FUNCTIONS,
    weight=0.34,
)
def test_grouped_second_derivatives(subject: Subject, case: GroupedCase) -> float | None:
    instance = bound(subject, Grouped(subject, case))
    instance.require_grad()
    y = instance.forward()
    got = unless_it_raises(lambda: _second(y, instance))
    if got is None:
        return None  # refusing is allowed
    plain = bound(dataclasses.replace(subject, thing=PLAIN[subject.name]), instance.grouped)
    judge_second_derivatives(got, _second(plain.forward(), plain))
    return None


def _second(y: torch.Tensor, instance: Bound) -> dict[str, torch.Tensor]:
    """The gradients of the sum of all squared gradients."""
    leaves = {name: instance.tensors[name] for name in TRAINABLE}
    return second_derivatives([y], leaves, [instance.grouped.placed["g"].tensor])
