"""The gradients after clipping, and the returned norm."""

from __future__ import annotations

import math

import torch

from conformance.cases.memory_layout import LAYOUTS
from conformance.clauses.gradnorm.gradients import GRADIENTS, Gradients, GradientsCase
from conformance.clauses.gradnorm.norm import MIXED, clip
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers
from conformance.specification.clause import SHOULD, clause
from conformance.target.subject import Subject

CLIPPED = GRADIENTS.narrowed(elements=(3, 2, 17, 64, 1000), clip=(0.5, 0.25, 0.01, 0.9))


def judge_clipped(gradients: Gradients, max_norm: float, *, tight: bool = False) -> float | None:
    """Judge every gradient after clipping."""
    expected = gradients.expected_clipped(max_norm, tight=tight)
    return worst(*(judge(p.grad, e) for p, e in zip(gradients.with_gradient, expected, strict=True)))


@clause(
    "GRN-CLIP",
    sentence="""Every gradient is multiplied by max_norm/(norm + 1e-6), where norm is the norm of all gradients, and
    keeps its dtype.""",
    cases=CLIPPED,
)
def test_clip(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    clip(subject, gradients, gradients.max_norm)
    return judge_clipped(gradients, gradients.max_norm)


@clause(
    "GRN-MANY",
    sentence="""Hundreds of gradients, more than one launch of a multi-tensor kernel can take, all count in the norm
    and are all clipped.""",
    cases=CLIPPED.narrowed(elements=(450, 900), tensors=(150, 400), values=("equal",)),
    weight=0.25,
)
def test_many_tensors(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    norm = clip(subject, gradients, gradients.max_norm)
    return worst(judge(norm, gradients.expected_norm()), judge_clipped(gradients, gradients.max_norm))


@clause(
    "GRN-CLIP-LARGE",
    sentence="All elements of a large gradient are clipped, also those beyond one block or chunk of a kernel.",
    cases=CLIPPED.narrowed(elements=(70_001, 2**17 + 5), tensors=(1, 2), values=("normal", "equal")),
    weight=0.25,
)
def test_clip_large_gradients(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    clip(subject, gradients, gradients.max_norm)
    return judge_clipped(gradients, gradients.max_norm)


@clause(
    "GRN-CLIP-MIXED",
    sentence="Gradients of different dtypes are clipped by one common factor, each in its own dtype.",
    cases=MIXED.narrowed(elements=(17, 4, 64), tensors=(2, 3)),
    dtypes=("float32", "bfloat16", "float16"),
    weight=0.5,
)
def test_clip_mixed_dtypes(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    norm = clip(subject, gradients, gradients.max_norm)
    return worst(judge(norm, gradients.expected_norm()), judge_clipped(gradients, gradients.max_norm))


@clause(
    "GRN-CLIP-ULP",
    sentence="Clipped gradients are right to a few units in the last place.",
    cases=CLIPPED,
    level=SHOULD,
    dtypes=("float64", "float32"),
)
def test_clip_to_the_last_place(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    clip(subject, gradients, gradients.max_norm)
    return judge_clipped(gradients, gradients.max_norm, tight=True)


@clause(
    "GRN-CLIP-EPS",
    sentence="The clip factor is max_norm/(norm + 1e-6), also for a norm near 1e-5, where the 1e-6 changes the result.",
    cases=CLIPPED.narrowed(values=("small",), elements=(3, 1, 17)),
    dtypes=("float64", "float32", "bfloat16"),
    weight=0.5,
)
def test_epsilon(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    clip(subject, gradients, gradients.max_norm)
    return judge_clipped(gradients, gradients.max_norm)


@clause(
    "GRN-CLIP-CAP",
    sentence="The clip factor is at most 1: if norm + 1e-6 ≤ max_norm, every gradient keeps its bits.",
    cases=GRADIENTS.narrowed(clip=(1.5, 4.0, 1000.0, math.inf), values=("normal", "wide", "tiny", "equal")),
)
def test_factor_is_capped(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    max_norm = gradients.max_norm + 1e-3
    clip(subject, gradients, max_norm)
    for i, placed in enumerate(gradients.placed):
        require(
            not placed.contents_changed(),
            f"gradient {i} was modified although the norm {gradients.norm:.6g} is within "
            f"max_norm={max_norm:.6g}; its largest element is {_largest(placed.tensor):.6g} "
            f"and was {_largest_before(gradients, i):.6g}",
        )
    return None


def _largest(tensor: torch.Tensor) -> float:
    return float(abs(numbers(tensor)).max(initial=0))


def _largest_before(gradients: Gradients, index: int) -> float:
    return float(abs(gradients.values[index]).max(initial=0))


@clause(
    "GRN-CLIP-RANGE",
    sentence="Gradients whose squares overflow are clipped, not set to zero, however small the clip factor is.",
    cases=CLIPPED.narrowed(values=("huge",), elements=(3, 1, 17, 1000), clip=(0.5, 0.01, 0.001)),
)
def test_clip_extreme_gradients(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    # in float16, a limit of 0.01 needs factors that this dtype cannot hold, although it can hold the results
    max_norm = 0.01 if case.dtype == "float16" else gradients.max_norm
    clip(subject, gradients, max_norm)
    return judge_clipped(gradients, max_norm)


@clause(
    "GRN-BEFORE",
    sentence="""The returned norm is the norm before clipping, and it does not change when the gradients change
    afterwards.""",
    cases=CLIPPED.narrowed(elements=(1, 3, 17)),
    weight=0.5,
)
def test_norm_before_clipping(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    norm = clip(subject, gradients, gradients.max_norm)
    for parameter in gradients.with_gradient:
        assert parameter.grad is not None
        parameter.grad.zero_()
    return judge(norm, gradients.expected_norm())


@clause(
    "GRN-CLIP-ZERO",
    sentence="max_norm = 0 sets every gradient to zero.",
    cases=CLIPPED.narrowed(elements=(1, 3, 17)),
    weight=0.5,
)
def test_limit_of_zero(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    norm = clip(subject, gradients, 0.0)
    for i, parameter in enumerate(gradients.with_gradient):
        assert parameter.grad is not None
        left = _largest(parameter.grad)
        require(left == 0, f"clip_grad_norm_ with max_norm=0 leaves {left:.6g} in gradient {i}: expected zeros")
    return judge(norm, gradients.expected_norm())


@clause(
    "GRN-LAYOUT",
    sentence="The norm and the clipped gradients do not depend on the strides or the storage offsets of the gradients.",
    cases=CLIPPED.narrowed(layout=LAYOUTS[:-1], elements=(64, 24, 1000, 17), tensors=(1, 2, 3)),
)
def test_gradient_layout(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    norm = clip(subject, gradients, gradients.max_norm)
    return worst(judge(norm, gradients.expected_norm()), judge_clipped(gradients, gradients.max_norm))
