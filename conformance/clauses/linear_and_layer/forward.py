"""The forward pass: the formula over sizes, leading dimensions, layouts, dtypes, scales and special values."""

from __future__ import annotations

import dataclasses

import numpy as np

from conformance.cases.linear_case import LINEAR, LinearCase
from conformance.clauses.linear_and_layer.case_spaces import LAYOUT, LEADING, MIXED, SCALED, SMALL
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for, output
from conformance.judgement.judge import compare, judge, worst
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Subject, run


@clause(
    "LIN-FWD",
    "LAY-FWD",
    sentence="""y = x Wᵀ + b + s·(x Aᵀ) Bᵀ, in the dtype of x Wᵀ, for every size and rank, with or without bias, in
    every grad mode.""",
    cases=LINEAR,
)
def test_forward(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge(output(subject, operands), oracle_for(subject, operands).y)


@clause(
    "LIN-FWD-LEAD",
    "LAY-FWD-LEAD",
    sentence="x may have any number of leading dimensions, including none and empty ones; y has the same ones.",
    cases=LEADING,
)
def test_forward_leading(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge(output(subject, operands), oracle_for(subject, operands).y)


@clause(
    "LIN-FWD-LAYOUT",
    "LAY-FWD-LAYOUT",
    sentence="y does not depend on the strides or the storage offset of x, W, A and B.",
    cases=LAYOUT,
)
def test_forward_layout(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge(output(subject, operands), oracle_for(subject, operands).y)


@clause(
    "LIN-FWD-MIXED",
    "LAY-FWD-MIXED",
    sentence="""When the adapter's dtype differs from that of x, x is cast to it for the adapter path, and y keeps
    the dtype of the base output.""",
    feature="adapter_dtype",
    cases=MIXED,
    weight=0.5,
)
def test_forward_mixed(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge(output(subject, operands), oracle_for(subject, operands).y)


@clause(
    "LIN-FWD-SCALE",
    "LAY-FWD-SCALE",
    sentence="The scale, of any sign and size, multiplies the adapter's term only; at scale 0, y is the base output.",
    cases=SCALED,
)
def test_forward_scale(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge(output(subject, operands), oracle_for(subject, operands).y)


@clause(
    "LIN-FWD-NONFINITE",
    "LAY-FWD-NONFINITE",
    sentence="""A NaN or infinity in one row of x makes every element of that row of y non-finite, and changes no
    other row.""",
    cases=SMALL.narrowed(special=("nan", "inf"), values=("normal",)),
    weight=0.5,
)
def test_forward_nonfinite(subject: Subject, case: LinearCase) -> float | None:
    if subject.device == "cpu" and case.dtype in ("bfloat16", "float16"):
        # torch's own CPU product of 16-bit rows reads past a row's end and multiplies what it finds by zero
        # (oneDNN 3.12, odd K): a NaN in the next row then reaches this one, whatever the layer does
        case = dataclasses.replace(case, m=1, lead="2d")
    operands = subject.operands(case)
    clean = subject.operands(dataclasses.replace(case, special="none"))
    y = output(subject, operands)
    expected = oracle_for(subject, clean).y
    row = case.seed % len(operands.rows("x"))
    others = np.arange(len(operands.rows("x"))) != row
    seen = numbers(y).reshape(-1, case.n)
    require(not np.isfinite(seen[row]).any(), f"y[{row}] has finite elements although x[{row}] holds a {case.special}")
    assert expected.budget is not None
    rest = dataclasses.replace(expected, value=expected.value[others], budget=expected.budget[others], terms={})
    return compare(seen[others], rest)


@clause(
    "LIN-FWD-ZERO",
    "LAY-FWD-ZERO",
    sentence="""x = 0 gives the bias, and lora_B = 0 gives the base layer's output and right dA and dB; with integer
    operands all are exact.""",
    cases=SMALL.narrowed(special=("zero-B", "zero-x"), bias=(True, False)),
    weight=0.5,
)
def test_forward_zero(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = run(subject, operands, tuple(n for n in TRAINABLE if case.special == "zero-B" or n != "x"))
    oracle = oracle_for(subject, operands)
    y = instance.forward()
    names = ("lora_A", "lora_B") if case.special == "zero-B" else ()
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle, names))


@clause(
    "LIN-FWD-DENORMAL",
    "LAY-FWD-DENORMAL",
    sentence="Subnormal inputs are not flushed to zero.",
    cases=SMALL.narrowed(special=("denormal",), values=("normal",), k=(17, 33), n=(5, 16), r=(1, 3), bias=(False,)),
    level="SHOULD",
    dtypes=("float32", "float16"),
    weight=0.34,
)
def test_forward_denormal(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge(output(subject, operands), oracle_for(subject, operands).y)


@clause(
    "LIN-FWD-OVERFLOW",
    "LAY-FWD-OVERFLOW",
    sentence="""y is finite and right if the exact y and each of s·x, x Aᵀ, s·x Aᵀ, (x Aᵀ) Bᵀ, s·(x Aᵀ) Bᵀ, x Wᵀ and
    x Wᵀ + b, and in a layer alpha·(x Aᵀ) Bᵀ, fit the dtype, even near its largest number.""",
    cases=SMALL.narrowed(special=("near-overflow",), values=("normal",), bias=(False, True)),
    dtypes=("float16",),
    weight=0.5,
)
def test_forward_near_overflow(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge(output(subject, operands), oracle_for(subject, operands).y)


@clause(
    "LIN-FWD-OVERFLOW-ORDER",
    "LAY-FWD-OVERFLOW-ORDER",
    sentence="""y is finite and right if the exact result fits the dtype, even if the update before scaling, (x Aᵀ)
    Bᵀ, does not.""",
    feature="early_scaling",
    cases=SMALL.narrowed(special=("overflow-before-scale",), values=("normal",), scale=(0.125,), bias=(False,)),
    level="SHOULD",
    dtypes=("float16",),
    weight=0.5,
)
def test_forward_overflow_before_scale(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge(output(subject, operands), oracle_for(subject, operands).y)
