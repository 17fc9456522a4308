"""Static quantisation: the ranges that calibration records for each module, and inputs outside these ranges."""

from __future__ import annotations

import re

import numpy as np
import torch

from conformance.clauses.fhe.quantized_case import SMALL, Problem, QuantizedCase
from conformance.clauses.fhe.split_model import Split, calibrated
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import Inconclusive, require
from conformance.specification.clause import clause
from conformance.target.subject import Subject

STATIC = SMALL.narrowed(values=("normal", "far"), side=("forward", "backward"))
TYPES = ("float64", "float32", "bfloat16")
Limits = tuple[float, float]


def limits(*tensors: torch.Tensor) -> Limits:
    """The range of all elements of some tensors."""
    return float(min(t.min() for t in tensors)), float(max(t.max() for t in tensors))


def judge_both(split: Split, of_x: Limits, of_g: Limits) -> float | None:
    """Judge y and dX of mode disable, quantised over these ranges."""
    y, dX = split.both("disable")
    return worst(judge(y, split.problem.y(of_x)), judge(dX, split.problem.dX(of_g)))


@clause(
    "FHE-STATIC",
    sentence="""With use_dynamic_quantization=False inputs are quantised over the range that calibration recorded, and
    W over one range: s = max|w|/(2ⁿ⁻¹ - 1), z = 0. The forward and the backward module each have their own input
    range.""",
    cases=STATIC,
    dtypes=TYPES,
    needs=("CustomLinear",),
    weight=0.5,
)
def test_static(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    with torch.no_grad():
        problem["g"].mul_(8)  # ranges that differ
    problem.values["g"] = problem.values["g"] * 8
    x, g = problem["x"].detach(), problem["g"].detach()
    split = calibrated(Split(subject, problem), [(x, g)], x)
    return judge_both(split, limits(x), limits(g))


@clause(
    "FHE-STATIC-MERGE",
    sentence="The range covers the inputs of all calibration passes and of compile_model, in whatever order they come.",
    cases=STATIC.narrowed(m=(3, 2, 5), how=("widening", "narrowing")),
    dtypes=("float32",),
    needs=("CustomLinear",),
    weight=0.5,
)
def test_passes_merge(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    x, g = problem["x"].detach(), problem["g"].detach()
    # each pass covers a range that the other does not
    passes = [(x.clamp(min=float(x.mean())), g.clamp(min=float(g.mean()))), (x.clamp(max=0), g.clamp(max=0))]
    passes.append((x[:1] * 2, g[:1] * 2))
    ordered = passes if case.how == "widening" else passes[::-1]
    compiled_on = x * 1.5
    split = calibrated(Split(subject, problem), ordered, compiled_on)
    seen_x, seen_g = zip(*passes, strict=True)
    return judge_both(split, limits(*seen_x, compiled_on), _with(limits(*seen_g)))


def _with(found: Limits) -> Limits:
    if found[0] == found[1]:
        raise Inconclusive("the range of g is one value")
    return found


@clause(
    "FHE-STATIC-CLAMP",
    sentence="""Inputs outside the range are clamped to it, with a warning that states their number; if all inputs are
    inside, there is no warning.""",
    cases=STATIC.narrowed(k=(17, 33), values=("normal",)),
    dtypes=("float64", "float32"),
    weight=0.5,
)
def test_clamps(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    x = problem["x"].detach()
    narrow = x * 0.5
    found = limits(narrow)
    split = Split(subject, problem, "linear").compile(narrow, use_dynamic_quantization=False)
    _, warned = split.noted("disable", narrow)
    require(not warned, f"a warning although no input is outside the calibrated range: {warned}")
    y, warned = split.noted("disable", x)
    values = problem.rows("x")
    count = int(((values < found[0]) | (values > found[1])).sum())
    if not count or count == values.size:
        raise Inconclusive("no input is outside the range, or all are")
    require(bool(warned), f"{count} inputs were clamped without a warning")
    said = any(re.search(rf"\b{count}\b", text) for text in warned)
    require(said, f"the warning does not say that {count} inputs were clamped: {'; '.join(warned)}")
    return judge(y, problem.y(found))


@clause(
    "FHE-STATIC-CONSTANT",
    sentence="""If the static range is a single value c, inputs equal to c are represented exactly, as in a row of
    equal elements.""",
    cases=SMALL.narrowed(values=("normal",), how=("0.3", "-0.0625", "2.5")),
    dtypes=("float64", "float32"),
    weight=0.5,
)
def test_constant_range(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    with torch.no_grad():
        x = problem["x"].fill_(float(case.how))
    problem.values["x"] = np.full_like(problem.values["x"], float(x.flatten()[0]))
    split = Split(subject, problem, "linear").compile(x, use_dynamic_quantization=False)
    return judge(split.forward("disable"), problem.y(limits(x)))
