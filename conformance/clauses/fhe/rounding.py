"""Rounding of quantised inputs: constant rows, a gradient of one value, rounding half to even, zero points."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conformance.clauses.fhe.mode_disable import CUSTOM
from conformance.clauses.fhe.quantized_case import LAYER, SMALL, Problem, QuantizedCase
from conformance.clauses.fhe.split_model import Split
from conformance.judgement.judge import judge, judge_together, worst
from conformance.judgement.outcomes import Inconclusive
from conformance.numerics.formats import rounded
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject


@clause(
    "FHE-CONSTANT",
    sentence="""Rows of x and g and columns of W whose elements all equal c are represented exactly: c > 0 as scale c,
    zero point 0, q = 1; c < 0 as scale |c|, zero point 1, q = 0; c = 0 as zeros.""",
    why="The source uses scale 1, which turns a gradient row of 1/16 into zeros.",
    cases=LAYER.narrowed(m=(2, 3, 8), values=("constant",), side=("forward", "backward")),
    needs=CUSTOM,
    weight=0.5,
)
def test_constants(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    expected = dataclasses.replace(problem.y(), certified=False), problem.dX()
    if not expected[0].value.any() or not expected[1].value.any():
        raise Inconclusive("y or dX is zero")
    y, dX = Split(subject, problem).compile().both("disable")
    return worst(judge(y, expected[0]), judge(dX, expected[1]))


@clause(
    "FHE-MEAN",
    sentence="The gradient of a mean, in which all elements of g are equal, passes through the backward product.",
    cases=SMALL.narrowed(values=("normal",), side=("backward",)),
    dtypes=("float64", "float32"),
    needs=CUSTOM,
    weight=0.5,
)
def test_gradient_of_mean(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    layer = Split(subject, problem).compile()
    x = problem["x"].detach().requires_grad_(True)
    y = layer.forward("disable", x)
    with calling("the backward pass of y.mean()"):
        torch.autograd.backward([y.mean()])
    share = rounded(np.full(problem.values["g"].shape, 1 / y.numel()), problem.dtype)
    problem.values["g"] = share
    return judge(x.grad, problem.dX())


@clause(
    "FHE-ROUND",
    sentence="Inputs, weights and zero points are rounded half to even.",
    cases=SMALL.narrowed(values=("ties",), side=("forward", "backward")),
    dtypes=("float64", "float32"),
    needs=CUSTOM,
    weight=0.5,
)
def test_rounding(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    y, dX = Split(subject, problem).compile().both("disable")
    return worst(judge(y, problem.y()), judge(dX, problem.dX()))


@clause(
    "FHE-ZERO-POINT",
    sentence="""Each of the three zero-point terms is computed in exact integers and subtracted, even if the zero
    points are large.""",
    cases=SMALL.narrowed(values=("far", "normal"), side=("forward", "backward")),
    dtypes=("float64", "float32"),
    needs=CUSTOM,
    weight=0.5,
)
def test_zero_points(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    y, dX = Split(subject, problem).compile().both("disable")
    # in one of the products a sum of integers may be 0, and its term with it
    return judge_together([(y, problem.y(each_term=True)), (dX, problem.dX(each_term=True))])
