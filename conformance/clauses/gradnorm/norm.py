"""The norm: its value over sizes, magnitudes and dtypes, and the gradients that it includes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.cases.case import Space
from conformance.clauses.gradnorm.gradients import GRADIENTS, Gradients, GradientsCase
from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics.dtypes import ADAPTER_DTYPES
from conformance.specification.clause import SHOULD, clause
from conformance.target.calls import calling
from conformance.target.signature import accepts
from conformance.target.subject import Subject


def clip(
    subject: Subject,
    gradients: Gradients,
    max_norm: float,
    parameters: Iterable[Any] | None = None,
    **options: Any,
) -> Any:
    """The norm that the target's `clip_grad_norm_` returns for the case's parameters, or for `parameters`."""
    with calling(f"clip_grad_norm_ of {gradients} with max_norm={max_norm:.6g}"):
        return subject.thing(gradients.parameters if parameters is None else parameters, max_norm, **options)


def measured(subject: Subject, gradients: Gradients) -> Any:
    """The norm that `clip_grad_norm_` returns when it has nothing to clip."""
    return clip(subject, gradients, 4 * gradients.norm + 1)


@clause(
    "GRN-NORM",
    sentence="""The norm is the square root of the sum of all squared gradient elements of all parameters, within a
    relative error of 1e-3.""",
    cases=GRADIENTS,
)
def test_norm(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    return judge(measured(subject, gradients), gradients.expected_norm())


LARGE = GRADIENTS.narrowed(
    elements=(2**20, 2**20 - 3),
    tensors=(1,),
    values=("equal", "normal", "wide"),
    beside=("nothing",),
)


@clause(
    "GRN-NORM-LARGE",
    sentence="The norm has a relative error of at most 1e-3 for up to 2^20 elements, even if all are equal.",
    why="In a plain float32 sum of equal squares, every rounding goes the same way.",
    cases=LARGE.narrowed(values=("equal",)),
    weight=0.2,
)
def test_norm_of_many_elements(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    return judge(measured(subject, gradients), gradients.expected_norm())


@clause(
    "GRN-NORM-ULP",
    sentence="The norm is within 4 units in the last place, for any number of elements.",
    cases=LARGE.narrowed(elements=(2**20, 4099, 1000), tensors=(1, 7, 40)),
    level=SHOULD,
    weight=0.2,
)
def test_norm_to_the_last_place(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    return judge(measured(subject, gradients), gradients.expected_norm(ulps=4))


@clause(
    "GRN-RANGE",
    sentence="""If the norm is representable, it neither overflows nor underflows, even if the squares of the
    gradients do.""",
    cases=GRADIENTS.narrowed(values=("huge", "tiny", "edge"), elements=(3, 1, 17, 1000)),
)
def test_norm_of_extreme_gradients(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    norm = clip(subject, gradients, float("inf"))
    if gradients.norm > torch.finfo(gradients.norm_dtype).max:  # of float16 gradients, where their norm is float16
        require(float(norm) == math.inf, f"the norm is {norm}: expected inf, since {gradients.norm:.6g} does not fit")
        return None
    return judge(norm, gradients.expected_norm())


@clause(
    "GRN-WIDE",
    sentence="The squares of 16-bit gradients are computed and summed in float32 or wider.",
    cases=GRADIENTS.narrowed(elements=(4099, 1000, 3000), values=("equal", "large"), tensors=(1, 2)),
    dtypes=("bfloat16", "float16"),
)
def test_norm_of_narrow_gradients(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    return judge(measured(subject, gradients), gradients.expected_norm())


def _mixed(case: GradientsCase) -> GradientsCase:
    """The case with every second gradient of another dtype."""
    partner = "same" if case.dtype == "float64" else ADAPTER_DTYPES[case.dtype]
    return dataclasses.replace(GRADIENTS.tame(case), other=partner)


MIXED = Space(
    GradientsCase, tame=_mixed, elements=(2, 3, 17), tensors=(1, 2, 3), values=("normal", "large"), clip=(0.5, 0.125)
)


@clause(
    "GRN-DTYPE",
    sentence="""The norm is a 0-d tensor: float64 for float64 gradients, and float32 for gradients of other dtypes
    or a mixture of these. With the feature norm_dtype "gradients" it has the dtype that all gradients promote to.""",
    cases=MIXED,
)
def test_norm_dtype(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    return judge(measured(subject, gradients), gradients.expected_norm())


@clause(
    "GRN-SKIP",
    sentence="""Parameters without a gradient, or with an empty one, are skipped, and still have no gradient or an
    empty one afterwards.""",
    cases=GRADIENTS.narrowed(elements=(1, 3, 17), tensors=(1, 2, 3), beside=("none", "empty", "both")),
)
def test_absent_gradients(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    shapes = [None if p.grad is None else p.grad.shape for p in gradients.parameters]
    norm = clip(subject, gradients, gradients.max_norm)
    for parameter, shape in zip(gradients.parameters, shapes, strict=True):
        now = None if parameter.grad is None else parameter.grad.shape
        require(
            now == shape,
            f"a parameter of shape {list(parameter.shape)} had {_gradient(shape)} before clip_grad_norm_ "
            f"and has {_gradient(now)} after",
        )
    return judge(norm, gradients.expected_norm())


def _gradient(shape: torch.Size | None) -> str:
    return "no gradient" if shape is None else f"a gradient of shape {list(shape)}"


@dataclasses.dataclass(frozen=True)
class NothingCase(GradientsCase):
    """No gradient at all.

    Fields:
        listed: `no-parameters`, or parameters that have `no-gradients` or `empty-gradients`.
    """

    listed: str = "no-parameters"


@clause(
    "GRN-NOTHING",
    sentence="""If there is no gradient or only empty ones, the norm is a 0-d tensor 0 and nothing is raised, even
    with error_if_nonfinite=True.""",
    cases=Space(NothingCase, listed=("no-parameters", "no-gradients", "empty-gradients")),
    dtypes=("float32", "bfloat16"),
    weight=0.5,
)
def test_no_gradient_at_all(subject: Subject, case: NothingCase) -> float | None:
    dtype = getattr(torch, case.dtype)
    parameters = {
        "no-parameters": [],
        "no-gradients": [nn.Parameter(torch.ones(3, dtype=dtype, device=subject.device))],
        "empty-gradients": [nn.Parameter(torch.ones(0, 3, dtype=dtype, device=subject.device))],
    }[case.listed]
    for parameter in parameters if case.listed == "empty-gradients" else ():
        parameter.grad = torch.zeros_like(parameter)
    options = {"error_if_nonfinite": True} if accepts(subject.thing, "error_if_nonfinite") else {}
    with calling(f"clip_grad_norm_ of {case.listed.replace('-', ' ')}"):
        norm = subject.thing(parameters, 1.0, **options)
    narrow = subject.follows("norm_dtype", "gradients") and getattr(norm, "dtype", None) == dtype and parameters
    expected = dtype if narrow else torch.float32
    return judge(norm, Expected("norm", np.zeros(()), None, expected, certified=False))


@clause(
    "GRN-ZERO",
    sentence="If all gradients are zero, the norm is 0 and they stay zero.",
    cases=GRADIENTS.narrowed(values=("zero",), elements=(3, 1, 17), tensors=(1, 2)),
    weight=0.5,
)
def test_zero_gradients(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    norm = clip(subject, gradients, 1.0)
    for i, placed in enumerate(gradients.placed):
        zeros = Expected(
            f"gradient {i} after clipping", gradients.values[i], None, gradients.dtypes[i], certified=False
        )
        judge(placed.tensor, zeros)
    return judge(norm, Expected("norm", np.zeros(()), None, gradients.norm_dtype, certified=False))


@clause(
    "GRN-SHARED",
    sentence="A parameter that is listed twice, as a tied weight may be, counts once and is clipped once.",
    cases=GRADIENTS.narrowed(elements=(3, 17, 64), tensors=(2, 3)),
    level=SHOULD,
)
def test_parameter_listed_twice(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    listed = [*gradients.parameters, gradients.with_gradient[0]]
    norm = clip(subject, gradients, gradients.max_norm, listed)
    for placed, expected in zip(gradients.placed, gradients.expected_clipped(gradients.max_norm), strict=True):
        judge(placed.tensor, expected)
    return judge(norm, gradients.expected_norm())


@clause(
    "GRN-FUNCTION",
    sentence="grad_norm(parameters) returns the norm that clip_grad_norm_ returns, and changes no gradient.",
    cases=GRADIENTS,
    needs=("grad_norm",),
    weight=0.5,
)
def test_grad_norm(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    with calling(f"grad_norm of {gradients}"):
        norm = subject.target.grad_norm(gradients.parameters)
    for i, placed in enumerate(gradients.placed):
        require(not placed.contents_changed(), f"grad_norm modified gradient {i}")
    return judge(norm, gradients.expected_norm())
