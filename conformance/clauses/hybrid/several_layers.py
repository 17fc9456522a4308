"""Several layers and calls at once, and calls without gradients."""

from __future__ import annotations

import dataclasses

import torch

from conformance.clauses.hybrid.frozen_layer import SMALL, Frozen, FrozenCase, custom_linear, forward
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject


@clause(
    "HYB-SEVERAL",
    sentence="""Pending calls do not affect each other: after forward passes of two layers, and of one layer on inputs
    of two shapes, backward in any order gives each input the dX of its own call.""",
    cases=SMALL.narrowed(values=("integers",), bias=(False, True)),
    dtypes=("float32",),
    weight=0.5,
)
def test_several(subject: Subject, case: FrozenCase) -> float | None:
    other = dataclasses.replace(case, seed=case.seed + 1, k=case.n, n=case.k, transposed=not case.transposed)
    problems = [Frozen(case, subject.device), Frozen(other, subject.device)]
    layers = [custom_linear(subject, problem) for problem in problems]
    inputs = [problem.x.detach().requires_grad_(True) for problem in problems]
    part = problems[0].x.detach()[:1].clone().requires_grad_(True)
    results = [forward(layer, x) for layer, x in zip(layers, inputs, strict=True)]
    results.append(forward(layers[0], part))
    gradients = [problems[0].g, problems[1].g, problems[0].g[:1]]
    for i in (0, 2, 1):
        with calling("the backward pass of one of several calls"):
            torch.autograd.backward([results[i]], [gradients[i]])
    ratio = worst(*(judge(x.grad, problem.dX) for x, problem in zip(inputs, problems, strict=True)))
    assert inputs[0].grad is not None
    same = part.grad is not None and torch.equal(part.grad, inputs[0].grad[:1])
    require(same, "a second call of a layer, with one row of x, gives that row another dX")
    return ratio


@clause(
    "HYB-NO-GRADIENT",
    sentence="If x does not require grad, or under no_grad, y does not require grad, and x.requires_grad is unchanged.",
    cases=SMALL.narrowed(values=("integers",)),
    dtypes=("float32",),
    weight=0.25,
)
def test_no_gradient(subject: Subject, case: FrozenCase) -> None:
    frozen = Frozen(case, subject.device)
    layer, x = custom_linear(subject, frozen), frozen.x.detach()
    require(not forward(layer, x).requires_grad, "y requires grad although x, W and b do not")
    require(not x.requires_grad, "the forward pass made x require grad")
    with torch.no_grad():
        y = forward(layer, x.clone().requires_grad_(True))
    require(not y.requires_grad, "y requires grad under no_grad")
