"""The forward pass of grouped layers: the formula over sizes, routings, leading dimensions, layouts and dtypes."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conformance.clauses.experts.case import GROUPED, LAYOUT, LEADING, MIXED, SMALL, Chosen, GroupedCase
from conformance.clauses.experts.grouped import TRAINABLE, Bound, Grouped, bound
from conformance.clauses.experts.oracle import Oracle
from conformance.judgement.judge import compare, judge, worst
from conformance.judgement.outcomes import require
from conformance.numerics.formats import Array, numbers
from conformance.specification.clause import clause
from conformance.target.subject import Subject

FUNCTIONS = ("lora_grouped_linear", "lora_grouped_linear_sorted")
PLAIN = ("lora_grouped_linear",)


def judged_all(subject: Subject, grouped: Grouped) -> float | None:
    """Judge the output and every gradient of one call."""
    return judged(bound(subject, grouped))


def judged(instance: Bound) -> float | None:
    """Judge the output and every gradient of one call of a bound target."""
    instance.require_grad()
    y, oracle = instance.forward(), Oracle(instance.grouped)
    ratio = judge(y, oracle.y)
    instance.backward(y)
    return worst(ratio, *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))


@clause(
    "EXP-FWD",
    sentence="""Row i with expert e gives y_i = W_e x_i + b_e + s·B_e (A_e x_i), whatever the number of experts and rows
    and however uneven the routing.""",
    cases=GROUPED,
    subjects=FUNCTIONS,
)
def test_grouped_forward(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    instance = bound(subject, grouped)
    instance.require_grad()
    with torch.set_grad_enabled(case.training):
        y = instance.forward()
    return judge(y, Oracle(grouped).y)


@clause(
    "EXP-OVERFLOW",
    sentence="""y_i is finite and right if the exact y_i and each of s·x, A x, s·A x, B A x, s·B A x, W x and W x + b of
    its expert fit the dtype, even near its largest number.""",
    cases=SMALL.narrowed(special=("near-overflow",), values=("normal",), base=(True,), bias=(False, True)),
    dtypes=("float16",),
    subjects=FUNCTIONS,
    weight=0.5,
)
def test_grouped_forward_near_overflow(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    instance = bound(subject, grouped)
    return judge(instance.forward(), Oracle(grouped).y)


@clause(
    "EXP-OVERFLOW-ORDER",
    sentence="""y_i is finite and right if the exact result fits the dtype, even if the update of its expert before
    scaling, B_e (A_e x_i), does not.""",
    feature="early_scaling",
    cases=SMALL.narrowed(
        special=("overflow-before-scale",), values=("normal",), scale=(0.125,), base=(True,), bias=(False,)
    ),
    level="SHOULD",
    dtypes=("float16",),
    subjects=FUNCTIONS,
    weight=0.34,
)
def test_grouped_forward_overflow_before_scale(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    return judge(bound(subject, grouped).forward(), Oracle(grouped).y)


@clause(
    "EXP-LEAD",
    sentence="""x and the indices may have any number of leading dimensions, including none and empty ones; without rows
    y is empty, and the gradients of A and B are zero tensors.""",
    cases=LEADING,
    subjects=PLAIN,
)
def test_grouped_leading_dimensions(subject: Subject, case: GroupedCase) -> float | None:
    return judged_all(subject, Grouped(subject, case))


@clause(
    "EXP-LAYOUT",
    sentence="The output and the gradients do not depend on the strides or the offset of any operand.",
    cases=LAYOUT,
    subjects=FUNCTIONS,
    weight=0.75,
)
def test_grouped_layouts(subject: Subject, case: GroupedCase) -> float | None:
    if subject.name not in PLAIN:
        case = dataclasses.replace(case, lead="2d")
    return judged_all(subject, Grouped(subject, case))


@clause(
    "EXP-MIXED",
    sentence="""When the adapters' dtype differs from that of x, y keeps the dtype of x, and each gradient has the dtype
    of its own operand.""",
    cases=MIXED,
    subjects=FUNCTIONS,
    weight=0.5,
)
def test_grouped_mixed_dtypes(subject: Subject, case: GroupedCase) -> float | None:
    return judged_all(subject, Grouped(subject, case))


@clause(
    "EXP-ABSENT",
    sentence="""A row whose index is below 0 or at least E, or that follows the last offset, is absent: it is not read,
    so that a NaN or infinity in it does not leak, and its y and dX are exactly 0, without a bias.""",
    cases=SMALL.narrowed(routing=("absent", "all-absent"), special=("nan-absent",), values=("normal",)),
    subjects=FUNCTIONS,
)
def test_absent_rows(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    instance = bound(subject, grouped)
    instance.require_grad()
    y, oracle = instance.forward(), Oracle(grouped)
    instance.backward(y)
    for name, tensor in (("y", y), ("dX", instance.gradient("x"))):
        require(tensor is not None, f"{name} is None: expected zeros in the absent rows")
        assert tensor is not None
        absent = numbers(tensor).reshape(len(grouped.index), -1)[~grouped.present]
        seen = absent[np.flatnonzero(absent.any(1))[0]][0] if absent.any() else 0.0
        require(not absent.any(), f"{name} holds {seen:.6g} in an absent row: expected exactly 0")
    ratios = [judge(y, oracle.y)]
    return worst(*ratios, *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))


@clause(
    "EXP-NONFINITE",
    sentence="""A NaN or infinity in one row of x makes every element of that row of y non-finite, and changes no other
    row, of the same expert or of another.""",
    cases=SMALL.narrowed(special=("nan", "inf"), values=("normal",), routing=("uneven", "one", "few")),
    subjects=FUNCTIONS,
    weight=0.5,
)
def test_grouped_nonfinite(subject: Subject, case: GroupedCase) -> float | None:
    if subject.device == "cpu" and case.dtype in ("bfloat16", "float16"):
        # torch's own CPU products in 16 bits read past a row's end
        case = dataclasses.replace(case, k=8, n=8, r=8, m=case.m, sizes="free")
    grouped = Grouped(subject, case)
    y = bound(subject, grouped).forward()
    bad: Chosen = np.asarray(~np.isfinite(grouped.rows("x")).all(axis=1), dtype=np.bool_)
    expected = Oracle(Grouped(subject, dataclasses.replace(case, special="none"))).y
    seen = numbers(y).reshape(len(bad), -1)
    require(not np.isfinite(seen[bad]).any(), f"a row of y is finite although its x holds a {case.special}")
    assert expected.budget is not None
    rest = dataclasses.replace(expected, value=_without(expected.value, bad), budget=_without(expected.budget, bad))
    return compare(seen[~bad], dataclasses.replace(rest, terms={}))


def _without(values: Array, rows: Chosen) -> Array:
    return values.reshape(len(rows), -1)[~rows]


@clause(
    "EXP-IDLE",
    sentence="""An expert that no row chooses, first, in the middle or last, changes no result; its rows of dA and dB
    are exactly 0, and dA and dB are tensors even if no row has an expert.""",
    cases=SMALL.narrowed(routing=("idle-first", "idle-middle", "idle-last", "all-absent", "few")),
    subjects=FUNCTIONS,
)
def test_idle_experts(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    instance = bound(subject, grouped)
    instance.require_grad()
    y, oracle = instance.forward(), Oracle(grouped)
    instance.backward(y)
    idle = np.setdiff1d(np.arange(case.experts), grouped.index)
    for name, symbol in (("lora_A", "dA"), ("lora_B", "dB")):
        gradient = instance.gradient(name)
        require(gradient is not None, f"{symbol} is None: expected a tensor, zero for experts without rows")
        assert gradient is not None
        found = numbers(gradient)[idle]
        require(
            not found.any(), f"{symbol} of an expert without rows holds {np.abs(found).max(initial=0):.6g}: expected 0"
        )
    return worst(judge(y, oracle.y), *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))
