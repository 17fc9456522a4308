"""Dropout between lora_A and lora_B: each of the r elements of x Aᵀ is kept or dropped, for every output at once."""

from __future__ import annotations

import itertools

import numpy as np

from conformance.cases.linear_case import LinearCase
from conformance.clauses.linear_and_layer.dropout import DROPPED, WITH_DROPOUT, started
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import LinearOracle
from conformance.judgement.outcomes import Inconclusive, require
from conformance.numerics.formats import Array, numbers
from conformance.specification.clause import clause
from conformance.target.subject import Subject


@clause(
    "LIN-DROP-MID",
    "LAY-DROP-MID",
    sentence="""Dropout between lora_A and lora_B acts on x Aᵀ only: each row of y is that of a mask over the r elements
    of x Aᵀ, with the others divided by 1-p, and every gradient uses that mask.""",
    feature="dropout",
    cases=DROPPED.narrowed(position=("mid",), r=(1, 2, 3), n=(16, 35, 67)),
    subjects=WITH_DROPOUT,
    position="mid",
    dtypes=("float64", "float32"),  # in 16 bits the masks of many rows cannot be told apart
    weight=0.5,
)
def test_dropout_of_the_middle(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = started(subject, operands)
    y = instance.forward()
    instance.backward(y)
    plain = oracle_for(subject, operands)
    got = numbers(y)
    require(got.shape == plain.y.value.shape, f"y has shape {list(got.shape)}: expected {list(plain.y.value.shape)}")
    mask, unclear = _nearest_mask(got, plain)
    if unclear > 0.25:
        raise Inconclusive("the masks of many rows cannot be told apart")
    masked = oracle_for(subject, operands, mask=mask)
    ratio = judge(y, masked.y)
    return ratio if unclear else worst(ratio, judge_gradients(instance, masked))


def _nearest_mask(got: Array, plain: LinearOracle) -> tuple[Array, float]:
    """For each row of y the mask that gives the nearest row, and the share of rows that a second mask gives as well."""
    case = plain.operands.case
    rows = got.reshape(-1, case.n)
    base = (plain.y.value - plain.y.terms["adapter"]).reshape(rows.shape)
    masks = np.array(list(itertools.product((0.0, 1 / (1 - case.dropout)), repeat=case.r)))
    middle = plain.x @ plain.down.T
    found = np.stack([base + plain.scale * (middle * mask) @ plain.up.T for mask in masks])
    distance = np.linalg.norm(found - rows, axis=2)
    order = np.argsort(distance, axis=0)
    first, second = (np.take_along_axis(found, order[place][None, :, None], axis=0)[0] for place in (0, 1))
    assert plain.y.budget is not None
    allowed = np.linalg.norm(plain.y.budget.reshape(rows.shape), axis=1) / (1 - case.dropout)
    unclear = np.linalg.norm(first - second, axis=1) < 4 * allowed
    return masks[order[0]].reshape(*case.leading, case.r), float(unclear.mean())
