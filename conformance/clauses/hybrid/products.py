"""The two products as modules: `ForwardModuleLinear` and `BackwardModuleLinear`."""

from __future__ import annotations

from typing import Any

import torch

from conformance.cases.memory_layout import LAYOUTS
from conformance.clauses.hybrid.frozen_layer import FROZEN, SMALL, Frozen, FrozenCase, forward
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject


def forward_module(subject: Subject, frozen: Frozen) -> Any:
    """The target's `ForwardModuleLinear` over the case's weight and bias."""
    weight, bias, transposed = frozen.arguments()
    with calling("ForwardModuleLinear(weight, bias, weight_transposed)"):
        return subject.target.ForwardModuleLinear(weight, bias, transposed)


def backward_module(subject: Subject, frozen: Frozen) -> Any:
    """The target's `BackwardModuleLinear` over the case's weight."""
    weight, _, transposed = frozen.arguments()
    with calling("BackwardModuleLinear(weight, weight_transposed)"):
        return subject.target.BackwardModuleLinear(weight, transposed)


@clause(
    "HYB-PROD-FWD",
    sentence="ForwardModuleLinear computes x Wᵀ + b, or x W + b with weight_transposed.",
    cases=FROZEN,
)
def test_forward_product(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    return judge(forward(forward_module(subject, frozen), frozen.x), frozen.y)


@clause(
    "HYB-PROD-BWD",
    sentence="BackwardModuleLinear computes g W, or g Wᵀ with weight_transposed, and adds no bias.",
    cases=FROZEN,
)
def test_backward_product(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    return judge(forward(backward_module(subject, frozen), frozen.g), frozen.dX)


@clause(
    "HYB-PROD-SHAPE",
    sentence="""ForwardModuleLinear and BackwardModuleLinear accept any number of leading dimensions, including zero
    and empty ones, and any strides.""",
    cases=SMALL.narrowed(
        m=(2, 0, 3, 17), lead=("1d", "3d", "4d", "2d"), x=LAYOUTS[:-1], g=LAYOUTS[:-1], w=LAYOUTS[:-1]
    ),
    dtypes=("float32", "bfloat16"),
)
def test_product_shapes(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    y = forward(forward_module(subject, frozen), frozen.x)
    dX = forward(backward_module(subject, frozen), frozen.g)
    return worst(judge(y, frozen.y), judge(dX, frozen.dX))


@clause(
    "HYB-PROD-INPUTS",
    sentence="""ForwardModuleLinear and BackwardModuleLinear do not modify x, g, W and b, and their results share no
    memory with them.""",
    cases=SMALL,
    dtypes=("float32", "bfloat16"),
    weight=0.5,
)
def test_product_inputs(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    results = [
        forward(forward_module(subject, frozen), frozen.x),
        forward(backward_module(subject, frozen), frozen.g),
    ]
    for result in results:
        with torch.no_grad():
            result.detach().zero_()
    for name, placed in frozen.placed.items():
        require(not placed.contents_changed(), f"{name} was modified, or shares memory with a result")
        require(not placed.margins_changed(), f"memory around {name} was written")
    return None
