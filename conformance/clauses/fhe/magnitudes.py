"""Numbers of any order of magnitude, and more bits than a byte has."""

from __future__ import annotations

import torch

from conformance.clauses.fhe.quantized_case import SMALL, Problem, QuantizedCase
from conformance.clauses.fhe.split_model import Split
from conformance.judgement.judge import judge, worst
from conformance.specification.clause import clause
from conformance.target.subject import Subject

CUSTOM = ("CustomLinear",)


@clause(
    "FHE-MAGNITUDE",
    sentence="""Rows and columns keep all their steps whatever their order of magnitude, 1e-15 or 1e15, and
    however narrow they are beside their distance from zero: there is no least scale, and nothing but one value is
    constant.""",
    cases=SMALL.narrowed(values=("tiny", "narrow", "huge"), k=(5, 3, 17), n=(5, 3, 16), bias=(False,)),
    dtypes=("float64", "float32"),
    needs=CUSTOM,
    weight=0.5,
)
def test_magnitudes(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    y, dX = Split(subject, problem).compile().both("disable")
    return worst(judge(y, problem.y()), judge(dX, problem.dX()))


@clause(
    "FHE-MORE-BITS",
    sentence="n_bits from 9 on, where integers are no bytes, is refused by compile_model or computes the formula.",
    cases=SMALL.narrowed(k=(3, 2), n=(3, 2), n_bits=(9, 10, 11, 12), values=("normal", "grid")),
    dtypes=("float64", "float32"),
    needs=CUSTOM,
    weight=0.5,
)
def test_more_bits(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    layer = Split(subject, problem)
    try:
        layer.hybrid.compile_model(torch.ones(2, case.k).to(layer.weight), n_bits=case.n_bits)
    except ValueError:
        return None
    y, dX = layer.both("disable")
    return worst(judge(y, problem.y()), judge(dX, problem.dX()))
