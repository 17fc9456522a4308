"""The output of an adapted layer on a packed base: the formula, sizes, leading dimensions and layouts, overflow."""

from __future__ import annotations

import torch

from conformance.clauses.quantised.case import DTYPES, LAYER, LAYOUT, SMALL, PackedCase
from conformance.clauses.quantised.oracle import PackedOracle
from conformance.clauses.quantised.packed_operands import adapted, operands_of, packed_base
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import Inconclusive, require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.subject import Instance, Subject

LAYERS = ("packed_linear",)


@clause(
    "QNT-FWD",
    sentence="""y = x Ŵᵀ + b + s·(x Aᵀ) Bᵀ, where Ŵ are the numbers that the storage stands for, in every format, at any
    sizes. Ŵ may be rounded once to the compute dtype, or the scales applied after the product.""",
    cases=LAYER,
    dtypes=DTYPES,
    subjects=LAYERS,
)
def test_output(subject: Subject, case: PackedCase) -> float | None:
    operands = operands_of(subject, case)
    y = adapted(subject, operands).forward()
    return judge(y, PackedOracle(operands).y)


@clause(
    "QNT-FWD-BASE",
    sentence="A packed base without an adapter gives x Ŵᵀ + b and the gradient g Ŵ, in train and in eval mode.",
    cases=SMALL.narrowed(training=(True, False)),
    dtypes=DTYPES,
    subjects=LAYERS,
    weight=0.5,
)
def test_base(subject: Subject, case: PackedCase) -> float | None:
    operands = operands_of(subject, case)
    base = packed_base(subject, operands).train(case.training)
    instance = Instance(base, {"x": operands.placed["x"].tensor.requires_grad_()}, operands)
    y = instance.forward()
    instance.backward(y)
    expected, dX = PackedOracle(operands).alone()
    return worst(judge(y, expected), judge(instance.gradient("x"), dX))


@clause(
    "QNT-FWD-LAYOUT",
    sentence="""y and dX are right for any leading dimensions, none and empty ones included, and do not depend on the
    strides or the offset of x and of the upstream gradient.""",
    cases=LAYOUT,
    dtypes=DTYPES,
    subjects=LAYERS,
    weight=0.5,
)
def test_layouts(subject: Subject, case: PackedCase) -> float | None:
    operands = operands_of(subject, case)
    instance = adapted(subject, operands)
    instance.require_grad(("x",))
    y = instance.forward()
    instance.backward(y)
    oracle = PackedOracle(operands)
    return worst(judge(y, oracle.y), judge(instance.gradient("x"), oracle.dX))


@clause(
    "QNT-FWD-OVERFLOW",
    sentence="y is finite and right wherever x Ŵᵀ, the update and y fit the dtype, even if x times the codes does not.",
    why="A scale that is applied after the product of codes lets that product overflow.",
    cases=SMALL.narrowed(special=("near-overflow",), bias=(False,), k=(64, 130), compute=("none",)),
    dtypes=("float16",),
    subjects=LAYERS,
    weight=0.5,
)
def test_overflow(subject: Subject, case: PackedCase) -> float | None:
    operands = operands_of(subject, case)
    y = adapted(subject, operands).forward()
    oracle = PackedOracle(operands)
    terms = {"x Ŵᵀ": oracle.alone()[0].value, "y": oracle.y.value}
    too_large = [name for name, value in terms.items() if abs(value).max() > torch.finfo(y.dtype).max]
    if too_large:
        raise Inconclusive(f"{' and '.join(too_large)} does not fit {y.dtype}: Ŵ is larger than the weight was")
    require(bool(y.isfinite().all()), f"y has {int((~y.isfinite()).sum())} elements of {y.numel()} that "
            f"are not finite: expected numbers up to {abs(oracle.y.value).max():.3g}")  # fmt: skip
    return judge(y, oracle.y)


@clause(
    "QNT-FWD-NONFINITE",
    sentence="A NaN or infinity in one row of x makes every element of that row of y non-finite, and no other row.",
    cases=SMALL.narrowed(special=("nan", "inf"), content=("codes",), m=(5, 3, 9)),
    dtypes=("float32",),
    subjects=LAYERS,
    weight=0.34,
)
def test_nonfinite(subject: Subject, case: PackedCase) -> float | None:
    operands = operands_of(subject, case)
    finite = numbers(adapted(subject, operands).forward().isfinite().double())
    row = case.seed % case.m
    reached = (abs(operands.values["weight"][:, case.seed % case.k]) > 0) | (case.special == "nan")
    require(not finite[row][reached].any(), f"y[{row}] has finite elements although x[{row}] holds a {case.special}")
    others = [other for other in range(case.m) if other != row]
    require(bool(finite[others].all()), f"rows beside y[{row}] have elements that are not finite")
    return None
