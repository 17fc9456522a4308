"""Dropout of an adapted layer on a packed base: on the adapter path, in training, with one mask for both passes."""

from __future__ import annotations

import torch

from conformance.cases.seeding import seed_torch
from conformance.clauses.linear_and_layer.dropout import RATES, judge_relation, read_mask
from conformance.clauses.quantised.case import SMALL, PackedCase
from conformance.clauses.quantised.forward import LAYERS
from conformance.clauses.quantised.oracle import PackedOracle
from conformance.clauses.quantised.packed_operands import adapted, operands_of
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import Inconclusive
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Instance, Subject

DROPPED = SMALL.narrowed(dropout=RATES, position=("post", "pre"))
PROBE = DROPPED.narrowed(special=("identity",), k=(32, 64), m=(33, 17), content=("spread",), bias=(False,))


def started(subject: Subject, case: PackedCase) -> Instance:
    """An adapted layer with dropout at a position that the target has, whose mask depends on the case alone."""
    seed_torch(case.seed)
    instance = adapted(subject, operands_of(subject, case))
    instance.require_grad(TRAINABLE)
    return instance


@clause(
    "QNT-DROP-BWD",
    sentence="""Dropout zeroes elements of x (`pre`) or of the update (`post`) with probability p and divides the others
    by 1-p; backward uses the forward's mask for every gradient.""",
    cases=PROBE,
    dtypes=("float32", "bfloat16"),
    subjects=LAYERS,
    feature="dropout",
    weight=0.5,
)
def test_dropout_gradients(subject: Subject, case: PackedCase) -> float | None:
    instance = started(subject, case)
    y = instance.forward()
    torch.rand(3)  # a backward that draws again must not find the generator where the forward left it
    instance.backward(y)
    mask = read_mask(y, instance.operands)
    if mask.all() or not mask.any():
        raise Inconclusive("the mask keeps everything, or nothing")
    oracle = PackedOracle(instance.operands, mask=mask)
    return worst(*(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))


@clause(
    "QNT-DROP-BASE",
    sentence="""With dropout ⟨g, y - base⟩ = ⟨dA, A⟩ = ⟨dB, B⟩ with base = x Ŵᵀ + b: the base has no dropout. In eval
    mode nothing has.""",
    cases=DROPPED.narrowed(training=(True, False)),
    dtypes=("float32",),
    subjects=LAYERS,
    feature="dropout",
    weight=0.5,
)
def test_dropout_spares_the_base(subject: Subject, case: PackedCase) -> float | None:
    instance = started(subject, case)
    oracle = PackedOracle(instance.operands)
    if case.training:
        return judge_relation(instance, oracle)
    y = instance.forward()
    instance.backward(y)
    return worst(judge(y, oracle.y), *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))
