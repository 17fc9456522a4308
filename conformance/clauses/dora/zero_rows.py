"""A weight with a zero row, which has no direction: refused, or computed by one of three conventions."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.clauses.dora.oracle import DORA, DoraOracle, oracle_of
from conformance.judgement.judge import compare, judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Violation, require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.specification.features import FEATURES, meant
from conformance.target.adapter_tensors import MAGNITUDE, adapter_of
from conformance.target.subject import TRAINABLE, Instance, Subject


@clause(
    "DORA-ZERO-ROW",
    sentence="A weight with a zero row is refused with an error, because a zero row has no direction.",
    feature="dora_zero_row",
    cases=DORA.narrowed(r=(3, 4, 17)),
    dtypes=("float32",),
    weight=0.2,
)
def test_zero_row(subject: Subject, case: LinearCase) -> float | None:
    row = case.seed % case.n
    operands = subject.operands(dataclasses.replace(case, special="zero-B"))
    operands.values["weight"][row] = 0
    convention = next((c for c in FEATURES["dora_zero_row"].conventions if subject.follows("dora_zero_row", c)), "")
    if convention in ("", "refused"):
        _require_error(subject, operands, row)
        return None
    instance = subject.build(operands, use_dora=True)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    with np.errstate(divide="ignore", invalid="ignore"):  # the norm of the zero row
        oracle = _oracle(subject, instance, row, factor=float(convention == "base"))
        expected = dataclasses.replace(oracle.y(), terms={})
        dB = dataclasses.replace(oracle.gradient("lora_B"), terms={})
    if convention == "nonfinite":
        return _judge_others(y, expected, row)
    instance.backward(y)
    return worst(judge(y, expected), judge(instance.gradient("lora_B"), dB))


def _require_error(subject: Subject, operands: Operands, row: int) -> None:
    """Require that a layer with a zero row cannot be built or called."""
    try:
        y = numbers(subject.build(operands, use_dora=True).forward())
    except Violation:
        return
    finite = bool(np.isfinite(y).all())
    remark = meant("dora_zero_row", "zero" if finite else "nonfinite")
    seen = "finite" if finite else "non-finite"
    raise Violation(f"row {row} of W is zero and the layer returned {seen} values: expected an error{remark}")


def _oracle(subject: Subject, instance: Instance, row: int, factor: float) -> DoraOracle:
    """The oracle of a fresh layer, whose factor m′ is given for the zero row; that row of y is then the bias."""
    magnitude = numbers(adapter_of(instance.module, MAGNITUDE))
    oracle = oracle_of(subject, instance.operands, magnitude)
    oracle.norm[row], oracle.factor[row], oracle.relative[row] = 1.0, factor, 0.0
    return oracle


def _judge_others(y: torch.Tensor, expected: Expected, row: int) -> float | None:
    """Judge y where the zero row gives values that are not finite, and every other row is right."""
    seen, others = numbers(y), np.arange(y.shape[-1]) != row
    finite = bool(np.isfinite(seen[..., row]).any())
    require(not finite, f"y[..., {row}] has finite elements although row {row} of W is zero: expected none")
    assert expected.budget is not None
    value, budget = expected.value[..., others], expected.budget[..., others]
    return compare(seen[..., others], dataclasses.replace(expected, value=value, budget=budget, mistakes={}))
