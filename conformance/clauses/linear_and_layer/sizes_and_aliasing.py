"""Sizes far beyond a kernel's block, operands whose elements share memory, and non-finite gradients."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.judgement.judge import compare, judge, worst
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Subject

LONG = {"m": (1100, 530), "k": (2100, 4099), "n": (1050, 530), "r": (131, 260)}


def stretched(case: LinearCase) -> LinearCase:
    """The case with one of its four sizes, chosen by its seed, made far larger than the others."""
    name = tuple(LONG)[case.seed % 4]
    size = LONG[name][case.seed // 4 % 2]
    return dataclasses.replace(case, **{name: size})  # type: ignore[arg-type]


@clause(
    "LIN-SIZE-LONG",
    "LAY-SIZE-LONG",
    sentence="""y and all gradients are right when the number of tokens or features, or the rank, far exceeds the
    block size of any kernel.""",
    cases=SMALL.narrowed(m=(3, 17), k=(17, 33), n=(5, 16), r=(3, 4), values=("normal",), training=(True,)),
    weight=0.67,
)
def test_one_long_size(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case if subject.lane == "interpreter" else subject.within_limits(stretched(case)))
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    instance.backward(y)
    oracle = oracle_for(subject, operands)
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle))


@clause(
    "LIN-LAYOUT-SHARED",
    "LAY-LAYOUT-SHARED",
    sentence="""Elements of an operand may share memory: g may be one expanded number, as for y.sum(), and the rows
    of x may be overlapping windows of one signal or one expanded number each.""",
    cases=SMALL.narrowed(values=("normal",), training=(True,)),
    weight=0.5,
)
def test_elements_that_share_memory(subject: Subject, case: LinearCase) -> float | None:
    # the errors of equal elements add up, as in expanded operands
    operands = subject.operands(dataclasses.replace(case, x="expanded", g="expanded"))
    _share_rows(operands, windows=bool(case.seed % 2))
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    operands.values["g"] = np.full(operands.shape, 0.5)
    number = torch.full((), 0.5, dtype=y.dtype, device=y.device)
    operands.placed["g"] = dataclasses.replace(operands.placed["g"], tensor=number.expand(operands.shape))
    instance.backward(y)
    oracle = oracle_for(subject, operands)
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle))


def _share_rows(operands: Operands, *, windows: bool) -> None:
    """Make the rows of x overlapping windows of one signal, or one expanded number each."""
    rows, features = operands.values["x"].shape
    signal = np.resize(operands.values["x"][0], rows + features)
    at = np.arange(rows)[:, None] + (np.arange(features) if windows else np.zeros(features, dtype=int))
    operands.values["x"] = signal[at]
    buffer = torch.from_numpy(signal).to(operands.dtype).to(operands.device)
    x = buffer.as_strided((rows, features), (1, 1 if windows else 0))
    operands.placed["x"] = dataclasses.replace(operands.placed["x"], tensor=x, buffer=buffer)


@clause(
    "LIN-BWD-NONFINITE",
    "LAY-BWD-NONFINITE",
    sentence="""A NaN or infinity in g[i, j] makes row i of dX, all of dA and row j of dB non-finite, and changes no
    other row of dX or dB.""",
    cases=SMALL.narrowed(values=("normal",), training=(True,)),
    dtypes=("float64", "float32"),  # with 16 bits torch's own CPU product reads past a row's end
    weight=0.34,
)
def test_gradients_of_no_number(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    oracle = oracle_for(subject, operands)
    row, column = case.seed % case.m, case.seed % case.n
    operands.placed["g"].tensor[row, column] = math.nan if case.seed % 2 else math.inf
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    instance.backward(instance.forward())
    found = {name: instance.gradient(name) for name in TRAINABLE}
    for name, gradient in found.items():
        require(gradient is not None, f"{name} has no gradient")
    dX, dA, dB = (numbers(found[name]) for name in TRAINABLE)  # type: ignore[arg-type]
    where = f"although g[{row}, {column}] is not finite"
    require(not np.isfinite(dX[row]).any(), f"dX[{row}] has finite elements {where}")
    require(not np.isfinite(dA).any(), f"dA has finite elements {where}")
    require(not np.isfinite(dB[column]).any(), f"dB[{column}] has finite elements {where}")
    rows, columns = np.arange(case.m) != row, np.arange(case.n) != column
    rest = []
    for expected, got, kept in ((oracle.dX, dX, rows), (oracle.dB, dB, columns)):
        assert expected.budget is not None
        part = dataclasses.replace(expected, value=expected.value[kept], budget=expected.budget[kept], terms={})
        rest.append(compare(got[kept], part))
    return worst(*rest)
