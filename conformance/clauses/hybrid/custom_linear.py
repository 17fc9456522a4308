"""The results of `CustomLinear`: y and dX over sizes, layouts, dtypes and autocast; no gradient for W and b."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conformance.cases.memory_layout import LAYOUTS
from conformance.clauses.hybrid.frozen_layer import (
    FROZEN,
    SMALL,
    Frozen,
    FrozenCase,
    backward,
    custom_linear,
    forward,
    judge_both,
)
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive, require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import unless_it_raises
from conformance.target.subject import Subject


@clause(
    "HYB-FWD",
    sentence="CustomLinear computes y = x Wᵀ + b (x W + b with weight_transposed), whether grad mode is on or off.",
    cases=FROZEN.narrowed(training=(True, False)),
)
def test_forward(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    layer = custom_linear(subject, frozen)
    with torch.set_grad_enabled(case.training):
        return judge(forward(layer, frozen.x), frozen.y)


@clause(
    "HYB-DX",
    sentence="Backward through CustomLinear gives dX = g W (g Wᵀ with weight_transposed), in the dtype of x.",
    cases=FROZEN,
)
def test_gradient_of_x(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    layer = custom_linear(subject, frozen)
    x = frozen.x.detach().requires_grad_(True)
    backward(forward(layer, x), frozen.g)
    return judge(x.grad, frozen.dX)


@clause(
    "HYB-DX-THROUGH",
    sentence="""x may be the result of another operation and may be used elsewhere too: the gradient of the leaf
    behind it is the sum over both paths.""",
    why="In a model x is rarely a leaf, and a residual connection uses it twice.",
    cases=SMALL.narrowed(values=("integers",)),
    dtypes=("float64", "float32"),
)
def test_gradient_through(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    layer = custom_linear(subject, frozen)
    leaf = (frozen.x.detach() / 2).requires_grad_(True)
    x = leaf * 2
    y = forward(layer, x)
    upstream = torch.ones_like(x)
    with calling("the backward pass"):
        torch.autograd.backward([y, x], [frozen.g, upstream])
    base = frozen.dX
    through = Expected(
        "gradient of x/2",
        2 * base.value + 2,
        None,
        base.dtype,
        {"base": 2 * base.value, "direct": np.full_like(base.value, 2.0)},
    )
    return judge(leaf.grad, through)


@clause(
    "HYB-LEAD",
    sentence="""x may have any number of leading dimensions, including zero and empty ones; y and dX have the same
    leading dimensions.""",
    cases=SMALL.narrowed(m=(2, 0, 3, 17, 1), lead=("1d", "3d", "4d", "2d", "3d")),
)
def test_leading_dimensions(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    return judge_both(custom_linear(subject, frozen), frozen)


@clause(
    "HYB-LAYOUT",
    sentence="y and dX do not depend on the strides of x, g and W; g may be transposed or expanded.",
    why="The gradient of a sum is expanded and that of a transpose is not contiguous.",
    cases=SMALL.narrowed(x=LAYOUTS, g=LAYOUTS, w=LAYOUTS[:-1], lead=("2d", "3d", "4d")),
)
def test_layouts(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    return judge_both(custom_linear(subject, frozen), frozen)


@clause(
    "HYB-NO-WGRAD",
    sentence="CustomLinear gives W and b no gradient, even if they are trainable.",
    cases=SMALL.narrowed(trainable=(True, False), bias=(True, False), training=(True, False)),
    dtypes=("float32", "bfloat16"),
)
def test_no_weight_gradient(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    layer = custom_linear(subject, frozen)
    # here `training` decides whether x requires grad; if it does not, y need not either
    x = frozen.x.detach().requires_grad_(case.training)
    y = forward(layer, x)
    if y.requires_grad:
        backward(y, frozen.g)
    for name, parameter in layer.named_parameters():
        require(parameter.grad is None, f"{name} of CustomLinear got a gradient, trainable={case.trainable}")
    return judge(x.grad, frozen.dX) if case.training else None


def _in_autocast(case: FrozenCase) -> FrozenCase:
    fitted = SMALL.tame(case)
    return dataclasses.replace(fitted, autocast="bfloat16")


AUTOCAST = type(SMALL)(
    FrozenCase, tame=_in_autocast, **{**SMALL.values, "how": ("float32", "bfloat16"), "trainable": (False, True)}
)


@clause(
    "HYB-AMP",
    sentence="""Under autocast y has the dtype of the region, backward works outside the region, and dX has the dtype
    of x.""",
    feature="autocast",
    cases=AUTOCAST,
    dtypes=("float32",),
)
def test_autocast(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    layer = custom_linear(subject, frozen)
    # inside a model x may already have the region's dtype, while W does not
    x = frozen.x.detach().to(getattr(torch, case.how)).requires_grad_(True)
    with torch.autocast(subject.device.partition(":")[0], dtype=torch.bfloat16):
        y = forward(layer, x)
    backward(y, frozen.g)
    return worst(judge(y, frozen.y), judge(x.grad, dataclasses.replace(frozen.dX, dtype=x.dtype)))


@clause(
    "HYB-TWICE",
    sentence="Two backward passes over a retained graph give the same dX each, and accumulate in x.grad.",
    cases=SMALL.narrowed(values=("integers",)),
    dtypes=("float32", "bfloat16"),
)
def test_two_backward_passes(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    layer = custom_linear(subject, frozen)
    x = frozen.x.detach().requires_grad_(True)
    y = forward(layer, x)
    backward(y, frozen.g, retain_graph=True)
    judge(x.grad, frozen.dX)
    expected = dataclasses.replace(frozen.dX, name="dX after two passes", value=2 * frozen.dX.value)
    if np.abs(expected.value).max(initial=0) > frozen.operands.exact_limit:
        raise Inconclusive("the sum is not an exact integer in the dtype")
    backward(y, frozen.g)
    return judge(x.grad, expected)


@clause(
    "HYB-DOUBLE",
    sentence="Differentiating dX again gives the right result or raises; it is never silently wrong.",
    cases=SMALL.narrowed(values=("integers",)),
    dtypes=("float64", "float32"),
)
def test_double_backward(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    layer = custom_linear(subject, frozen)
    x = frozen.x.detach().requires_grad_(True)
    g = frozen.g.detach().requires_grad_(True)
    y = forward(layer, x)
    first = unless_it_raises(lambda: torch.autograd.grad(y, x, g, create_graph=True))
    if first is None:
        return None  # refusing is allowed
    # the second term keeps the sum differentiable if dX has silently lost its graph
    total = first[0].sum() + 3 * g.sum()
    derivatives = unless_it_raises(lambda: torch.autograd.grad(total, g))
    if derivatives is None:
        return None
    (second,) = derivatives
    through = np.broadcast_to(frozen.operands.values["weight"].sum(1), frozen.y.value.shape)
    direct = np.full_like(frozen.y.value, 3.0)
    terms = {"derivative of dX": through, "direct": direct}
    return judge(second, Expected("derivative of ΣdX + 3Σg by g", through + direct, None, g.dtype, terms))
