"""Dtypes: the compute dtype beside that of x, an adapter of another dtype, autocast."""

from __future__ import annotations

import dataclasses

import torch

from conformance.clauses.quantised.case import DTYPES, MIXED, SMALL, PackedCase
from conformance.clauses.quantised.forward import LAYERS
from conformance.clauses.quantised.oracle import PackedOracle
from conformance.clauses.quantised.packed_operands import adapted, operands_of
from conformance.judgement.judge import judge, worst
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Subject

AMP = SMALL.narrowed(autocast=("bfloat16",))


@clause(
    "QNT-DTYPE-COMPUTE",
    sentence="""With a compute dtype, the base product is computed in it, whatever the dtype of x: y and dX are as exact
    as this dtype and that of x allow. y has the dtype of x.""",
    cases=SMALL.narrowed(compute=("bfloat16", "float32", "float16")),
    dtypes=DTYPES,
    subjects=LAYERS,
    feature="compute_dtype",
)
def test_compute_dtypes(subject: Subject, case: PackedCase) -> float | None:
    return _judged(subject, case)


@clause(
    "QNT-DTYPE-MIXED",
    sentence="""When the adapter's dtype differs from that of x, y has the dtype of x, and the gradients are right, each
    in the dtype of its own operand.""",
    cases=MIXED,
    dtypes=DTYPES,
    subjects=LAYERS,
    feature="adapter_dtype",
    weight=0.67,
)
def test_mixed_dtypes(subject: Subject, case: PackedCase) -> float | None:
    return _judged(subject, case)


@clause(
    "QNT-AMP",
    sentence="""Under autocast without a compute dtype, the layer behaves like F.linear(x, Ŵ) with its adapter: y has
    autocast's dtype. Backward runs outside the region.""",
    cases=AMP.narrowed(compute=("none",)),
    dtypes=("float32", "float16"),
    subjects=LAYERS,
    feature="autocast",
    weight=0.67,
)
def test_autocast(subject: Subject, case: PackedCase) -> float | None:
    return _judged(subject, case)


@clause(
    "QNT-AMP-COMPUTE",
    sentence="""Under autocast with a compute dtype, the base product is computed in the compute dtype as outside, and y
    has the dtype of x.""",
    cases=AMP.narrowed(compute=("float32",), update=("small",)),
    dtypes=("float32",),
    subjects=LAYERS,
    feature="compute_dtype autocast",
    weight=0.67,
)
def test_autocast_with_compute_dtype(subject: Subject, case: PackedCase) -> float | None:
    return _judged(subject, case)


def _judged(subject: Subject, case: PackedCase) -> float | None:
    """Judge y and all gradients, in an autocast region if the case has one."""
    operands = operands_of(subject, case)
    instance = adapted(subject, operands)
    instance.require_grad(TRAINABLE)
    kind, on = subject.device.partition(":")[0], case.autocast != "off"
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=on):
        y = instance.forward()
    instance.backward(y)
    oracle = PackedOracle(operands)
    expected = oracle.y
    if on and subject.follows("autocast", "input dtype"):
        expected = dataclasses.replace(expected, dtype=operands.dtype)
    return worst(judge(y, expected), *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))
