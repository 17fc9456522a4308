"""Relations between calls of a grouped layer: rows permuted and split, experts permuted, sliced and duplicated.

Each relation changes the operands of a first call, which the target has seen, and judges the second by the results of
the first: routing that is kept from the first call shows.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch

from conformance.clauses.experts.case import NORMAL, GroupedCase, Index
from conformance.clauses.experts.forward import FUNCTIONS, PLAIN
from conformance.clauses.experts.grouped import TRAINABLE, Bound, Grouped, bound, run
from conformance.clauses.experts.oracle import Oracle
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import Array
from conformance.specification.clause import clause
from conformance.target.subject import Subject

ROWS = NORMAL.narrowed(lead=("2d",))


def changed(grouped: Grouped, index: Index, **values: Array) -> Grouped:
    """A grouped layer with other indices and some other values, in new memory."""
    other = copy.copy(grouped)
    other.__dict__.pop("placed", None)
    other.__dict__.pop("routing", None)
    other.index, other.values = index, grouped.values | values
    other.case = dataclasses.replace(grouped.case, m=len(index), experts=len(other.values["lora_A"]))
    return other


def second_call(subject: Subject, first: Grouped, second: Grouped) -> tuple[Bound, torch.Tensor]:
    """A call with the operands of `second` after one with those of `first`, with its gradients."""
    run(subject, first)
    instance = bound(subject, second)
    instance.require_grad()
    y = instance.forward()
    instance.backward(y)
    return instance, y


def judged(instance: Bound, y: torch.Tensor, oracle: Oracle, named: str) -> float | None:
    """Judge the output and every gradient; `named` follows their names in messages."""

    def renamed(expected: Expected) -> Expected:
        return dataclasses.replace(expected, name=f"{expected.name} {named}")

    gradients = (judge(instance.gradient(name), renamed(oracle.gradient(name))) for name in TRAINABLE)
    return worst(judge(y, renamed(oracle.y)), *gradients)


@clause(
    "EXP-REL-PERMUTE",
    sentence="""Permuting the rows with their indices permutes the rows of y and dX, and changes neither dA nor dB;
    nothing is kept from a call with other indices of the same shape.""",
    cases=ROWS,
    subjects=PLAIN,
    weight=0.5,
)
def test_permuted_rows(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    order = np.random.default_rng(case.seed).permutation(len(grouped.index))
    other = changed(grouped, grouped.index[order], x=grouped.rows("x")[order], g=grouped.rows("g")[order])
    instance, y = second_call(subject, grouped, other)
    return judged(instance, y, Oracle(other), "of permuted rows")


@clause(
    "EXP-REL-EXPERTS",
    sentence="Permuting the experts and renaming the indices alike changes neither y nor dX, and permutes dA and dB.",
    cases=ROWS,
    subjects=PLAIN,
    weight=0.5,
)
def test_permuted_experts(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    order = np.roll(np.arange(case.experts), 1 + case.seed % max(case.experts - 1, 1))
    place = np.argsort(order)  # expert order[i] comes to place i
    index = np.where(grouped.present, place[np.clip(grouped.index, 0, case.experts - 1)], grouped.index)
    names = [name for name in ("weight", "bias", "lora_A", "lora_B") if name in grouped.values]
    other = changed(grouped, index, **{name: grouped.values[name][order] for name in names})
    instance, y = second_call(subject, grouped, other)
    return judged(instance, y, Oracle(other), "of permuted experts")


@clause(
    "EXP-REL-SPLIT",
    sentence="""Splitting the rows into two calls gives the same rows of y and dX, and the gradients of A and B of the
    two calls add up.""",
    cases=ROWS,
    subjects=PLAIN,
    weight=0.5,
)
def test_split_rows(subject: Subject, case: GroupedCase) -> float | None:
    grouped, ratios = Grouped(subject, case), []
    middle = len(grouped.index) // 2
    parts = [
        changed(grouped, grouped.index[part], x=grouped.rows("x")[part], g=grouped.rows("g")[part])
        for part in (slice(0, middle), slice(middle, None))
    ]
    instance: Bound | None = None
    for part in parts:
        before = instance
        instance = bound(subject, part)
        instance.require_grad()
        for name in ("lora_A", "lora_B") if before else ():
            assert before is not None
            instance.tensors[name].grad = before.gradient(name)
        y = instance.forward()
        instance.backward(y)
        oracle = Oracle(part)
        ratios += [judge(y, oracle.y), judge(instance.gradient("x"), oracle.dX)]
    assert instance is not None
    one, other = Oracle(parts[0]), Oracle(parts[1])
    for name in ("lora_A", "lora_B"):
        ratios.append(judge(instance.gradient(name), added(one.gradient(name), other.gradient(name), grouped)))
    return worst(*ratios)


def added(one: Expected, other: Expected, grouped: Grouped) -> Expected:
    """The sum of two gradients, with the budget of both and of their addition."""
    assert one.budget is not None
    assert other.budget is not None
    value = one.value + other.value
    budget = one.budget + other.budget + np.abs(value) * max(grouped.rounding.unit, grouped.rounding.adapter_unit)
    return dataclasses.replace(
        other, name=f"{other.name} of two calls", value=value, budget=budget, certified=bool(value.any())
    )


@clause(
    "EXP-REL-SLICES",
    sentence="""With the experts in two slices, each of which treats the rows of the other as absent, the sum of the two
    results is the whole, as under expert parallelism.""",
    cases=ROWS.narrowed(experts=(3, 2, 4)),
    subjects=PLAIN,
    weight=0.5,
)
def test_slices_of_experts(subject: Subject, case: GroupedCase) -> float | None:
    grouped, ratios = Grouped(subject, case), []
    middle, names = case.experts // 2, [n for n in ("weight", "bias", "lora_A", "lora_B") if n in grouped.values]
    for part in (slice(0, middle), slice(middle, case.experts)):
        index = grouped.index - part.start
        index = np.where(grouped.present, index, -1)
        other = changed(grouped, index, **{name: grouped.values[name][part] for name in names})
        instance, y = second_call(subject, grouped, other)
        ratios.append(judged(instance, y, Oracle(other), f"of the experts from {part.start}"))
    return worst(*ratios)


@clause(
    "EXP-REL-DUPLICATE",
    sentence="""When an expert is duplicated and some of its rows move to the copy, y and dX stay the same, and the
    gradients of the two experts are those of their own rows.""",
    cases=ROWS.narrowed(routing=("uneven", "one", "idle-first", "absent")),
    subjects=FUNCTIONS,
    weight=0.5,
)
def test_duplicated_experts(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    busiest = int(np.bincount(grouped.index[grouped.present], minlength=case.experts).argmax())
    names = [name for name in ("weight", "bias", "lora_A", "lora_B") if name in grouped.values]
    copies = {name: np.concatenate([v := grouped.values[name], v[busiest : busiest + 1]]) for name in names}
    absent = np.where(grouped.index >= case.experts, grouped.index + 1, grouped.index)
    own = np.flatnonzero(grouped.index == busiest)
    index = absent.copy()
    index[own[len(own) // 2 :]] = case.experts
    rank = np.where((index < 0) | (index > case.experts), case.experts + 1, index)
    order = np.argsort(rank, kind="stable") if grouped.is_sorted else np.arange(len(index))
    rows = {name: grouped.rows(name)[order] for name in ("x", "g")}
    other = changed(grouped, index[order], **copies, **rows)
    instance, y = second_call(subject, grouped, other)
    return judged(instance, y, Oracle(other), "with a duplicated expert")
