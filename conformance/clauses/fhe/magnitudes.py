"""Quantisation of numbers of any magnitude, and with more than eight bits."""

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
    sentence="""Each row and column is quantised in 2ⁿ - 1 steps over its own range, for magnitudes from 1e-15 to 1e15
    and for a range that is a millionth of its distance from zero. Scales have no lower bound; only a row or column
    whose elements are all equal is constant.""",
    why="A smallest scale, or a tolerance for constants, turns small gradients into zeros.",
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
    sentence="""For n_bits of 9 and more, where the integers do not fit in a byte, compile_model raises a ValueError
    or y and dX follow the formula of mode disable.""",
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
