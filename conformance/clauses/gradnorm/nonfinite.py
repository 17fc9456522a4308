"""Norms that are NaN or infinite: an error with `error_if_nonfinite`, returned without it."""

from __future__ import annotations

import math

from conformance.clauses.gradnorm.gradients import GRADIENTS, Gradients, GradientsCase
from conformance.clauses.gradnorm.norm import clip
from conformance.judgement.judge import judge
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.expected_errors import refuses
from conformance.target.subject import Subject

NONFINITE = GRADIENTS.narrowed(
    special=("nan", "inf"), elements=(3, 1, 17), tensors=(1, 2, 3), values=("normal",), beside=("nothing",)
)


def _refused(subject: Subject, case: GradientsCase) -> Gradients:
    gradients = Gradients.of(subject, case)
    refuses(
        f"clip_grad_norm_(…, error_if_nonfinite=True) of {gradients} with a {case.special} among them",
        lambda: subject.thing(gradients.parameters, 1.0, error_if_nonfinite=True),
        types=(RuntimeError, ValueError, ArithmeticError),
    )
    return gradients


@clause(
    "GRN-NONFINITE-RAISE",
    sentence="""With error_if_nonfinite=True, a NaN or infinite norm raises a RuntimeError, ValueError or
    ArithmeticError.""",
    cases=NONFINITE,
    needs=("clip_grad_norm_(error_if_nonfinite)",),
    weight=0.5,
)
def test_nonfinite_raises(subject: Subject, case: GradientsCase) -> float | None:
    _refused(subject, case)
    return None


@clause(
    "GRN-NONFINITE-KEEP",
    sentence="When a NaN or infinite norm raises, no gradient has been changed.",
    why="The caller may inspect the gradients or skip the step.",
    cases=NONFINITE,
    needs=("clip_grad_norm_(error_if_nonfinite)",),
    weight=0.5,
)
def test_nonfinite_keeps_gradients(subject: Subject, case: GradientsCase) -> float | None:
    for i, placed in enumerate(_refused(subject, case).placed):
        require(not placed.contents_changed(), f"gradient {i} was modified before clip_grad_norm_ raised")
    return None


@clause(
    "GRN-NONFINITE-RETURN",
    sentence="By default, a norm that is NaN or infinite is returned as NaN or infinity.",
    cases=NONFINITE,
    weight=0.5,
)
def test_nonfinite_is_returned(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    norm = float(clip(subject, gradients, 1.0))
    expected = math.isnan(norm) if case.special == "nan" else norm == math.inf
    require(expected, f"the norm of gradients with a {case.special} among them is {norm}: expected {case.special}")
    return None


@clause(
    "GRN-FINITE",
    sentence="error_if_nonfinite=True changes no result if the norm is finite.",
    cases=GRADIENTS.narrowed(elements=(3, 1, 17), values=("normal", "large")),
    needs=("clip_grad_norm_(error_if_nonfinite)",),
    weight=0.5,
)
def test_finite_does_not_raise(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    norm = clip(subject, gradients, gradients.max_norm, error_if_nonfinite=True)
    for placed, expected in zip(gradients.placed, gradients.expected_clipped(gradients.max_norm), strict=True):
        judge(placed.tensor, expected)
    return judge(norm, gradients.expected_norm())
