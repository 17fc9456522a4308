"""Relations between the target's own results, which need no oracle; both sides may err by their budgets."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from conformance.cases.linear_case import LinearCase
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.clauses.linear_and_layer.judged_results import oracle_for, output
from conformance.judgement.judge import compare
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive
from conformance.numerics.formats import Array, numbers
from conformance.specification.clause import clause
from conformance.target.subject import Subject


@clause(
    "LIN-REL-PERMUTE",
    "LAY-REL-PERMUTE",
    sentence="Permuting the rows of x permutes the rows of y.",
    cases=SMALL.narrowed(values=("normal",)),
    weight=0.34,
)
def test_permutation(subject: Subject, case: LinearCase) -> float | None:
    operands, permuted = subject.operands(case), subject.operands(case)
    order = np.random.default_rng(case.seed).permutation(len(operands.values["x"]))
    permuted.values["x"] = np.ascontiguousarray(operands.values["x"][order])
    expected = oracle_for(subject, operands).y
    straight, shuffled = numbers(output(subject, operands)), numbers(output(subject, permuted))
    return _within_both(shuffled, straight[order], expected, order, "y of permuted rows")


@clause(
    "LIN-REL-LINEAR",
    "LAY-REL-LINEAR",
    sentence="Without a bias, y is linear in x: y(a + b) = y(a) + y(b).",
    cases=SMALL.narrowed(values=("normal",), bias=(False,)),
    weight=0.34,
)
def test_linearity(subject: Subject, case: LinearCase) -> float | None:
    whole, left, right = (subject.operands(case) for _ in range(3))
    keep = np.random.default_rng(case.seed).random(case.k) < 0.5
    left.values["x"] = whole.values["x"] * keep
    right.values["x"] = whole.values["x"] * ~keep
    parts = (oracle_for(subject, o).y for o in (whole, left, right))
    allowed = sum((p.budget for p in parts if p.budget is not None), np.zeros(()))
    y, a, b = (numbers(output(subject, o)) for o in (whole, left, right))
    return judge_difference(y, a + b, allowed, "y(a + b) against y(a) + y(b)")


@clause(
    "LIN-REL-SCALE",
    "LAY-REL-SCALE",
    sentence="Doubling the scale gives the same y as doubling lora_B.",
    feature="alpha",
    cases=SMALL.narrowed(values=("normal",), scale=(1.0, 2.0)),
    weight=0.5,
)
def test_scale_is_lora_B(subject: Subject, case: LinearCase) -> float | None:
    doubled = subject.operands(dataclasses.replace(case, scale=2 * case.scale))
    heavier = subject.operands(dataclasses.replace(case, scale=2 * case.scale))
    heavier.values["lora_B"] = heavier.values["lora_B"] * 2
    heavier.case, heavier.scale = dataclasses.replace(case, scale=case.scale), case.scale
    expected = oracle_for(subject, doubled).y
    assert expected.budget is not None
    a, b = numbers(output(subject, doubled)), numbers(output(subject, heavier))
    return judge_difference(a, b, 2 * expected.budget, "y at scale 2s against y with 2B")


@clause(
    "LIN-REL-STACK",
    "LAY-REL-STACK",
    sentence="""The updates of two adapters add up to the update of one adapter that stacks them, whose rank is the
    sum of theirs.""",
    cases=SMALL.narrowed(values=("normal",), bias=(False,), r=(2, 4, 17)),
    weight=0.34,
)
def test_stacking(subject: Subject, case: LinearCase) -> float | None:
    whole = subject.operands(case)
    first = max(1, case.r // 2)
    parts = []
    for chosen in (slice(0, first), slice(first, case.r)):
        part = subject.operands(case)
        part.values["lora_A"], part.values["lora_B"] = (
            whole.values["lora_A"][chosen],
            np.ascontiguousarray(whole.values["lora_B"][:, chosen]),
        )
        part.case = dataclasses.replace(case, r=part.values["lora_A"].shape[0])
        parts.append(part)
    base = whole.rows("x") @ whole.values["weight"].T if subject.has_base else np.zeros(())
    expected = [oracle_for(subject, o).y for o in (whole, *parts)]
    allowed = sum((e.budget for e in expected if e.budget is not None), np.zeros(()))
    y, a, b = (numbers(output(subject, o)) for o in (whole, *parts))
    return judge_difference(y, a + b - base, allowed, "y of rank r against its two halves")


def judge_difference(got: Array, want: Array, allowed: Any, what: str) -> float:
    """Compare two results of the target, which may differ by `allowed`, the sum of their budgets."""
    expected = Expected(what, want, np.asarray(allowed), torch.float64)
    if not (np.abs(want) > 2 * np.asarray(allowed)).any():
        raise Inconclusive(f"{what}: the result is within the budget of zero")
    return compare(got, expected)


def _within_both(got: Array, want: Array, expected: Expected, order: Any, what: str) -> float:
    assert expected.budget is not None
    return judge_difference(got, want, 2 * expected.budget[order], what)
