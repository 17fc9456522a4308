"""The arguments of `lora_linear` and `LoRATritonFunction.apply`: shapes, dropout probability, output dtype."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from conformance.cases.linear_case import LinearCase
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import Refused, Violation
from conformance.numerics.formats import dtype_named
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Subject


@clause(
    "LIN-SHAPES",
    sentence="Operands whose features or rank do not chain are refused with an error.",
    cases=SMALL.narrowed(values=("normal",), k=(17, 33), n=(16, 35), r=(3, 4)),
    dtypes=("float32",),
    weight=0.5,
)
def test_operands_that_do_not_chain(subject: Subject, case: LinearCase) -> float | None:
    broken = ("lora_A", "lora_B", "x")[case.seed % 3]
    operands = subject.operands(case)
    values = operands.values[broken]
    operands.values[broken] = values[..., :-1].copy()
    try:
        y = subject.build(operands).forward()
    except (Violation, Refused):
        return None
    shapes = ", ".join(f"{name} {list(operands.values[name].shape)}" for name in ("x", "lora_A", "lora_B"))
    raise Violation(f"{subject.name} returned {list(y.shape)} from {shapes}: expected an error")


@clause(
    "LIN-DROP-RANGE",
    sentence="A dropout probability outside [0, 1], or NaN, is an error.",
    feature="dropout",
    cases=SMALL.narrowed(dropout=(-0.1, 1.5, float("nan")), training=(True,)),
    subjects=("lora_linear",),
    dtypes=("float32",),
    weight=0.34,
)
def test_dropout_out_of_range(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    try:
        subject.build(operands).forward()
    except (Violation, Refused):
        return None
    raise Violation(f"lora_linear(…, dropout={case.dropout}, training=True) returned: expected a ValueError")


OTHER = {"float64": "float32", "float32": "float64", "bfloat16": "float32", "float16": "float32"}


@clause(
    "LIN-DTYPE",
    sentence="LoRATritonFunction returns y in the requested dtype, and each gradient has the dtype of its operand.",
    cases=SMALL.narrowed(values=("integers", "cancelling"), training=(True,)),
    subjects=("LoRATritonFunction",),
    needs=("LoRATritonFunction",),
)
def test_output_dtype(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    asked = dtype_named(OTHER[case.dtype])
    instance = subject.build(operands)
    tensors = instance.tensors

    def call(x: torch.Tensor) -> Any:
        return subject.thing.apply(x, tensors["lora_A"], tensors["lora_B"], operands.scale, asked)

    instance.call = call
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    oracle = oracle_for(subject, operands)
    ratio = judge(y, dataclasses.replace(oracle.y, dtype=asked))
    instance.backward(y)
    return worst(ratio, judge_gradients(instance, oracle))
