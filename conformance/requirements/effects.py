"""Side effects: what a call may touch, and that it repeats to the bit."""

from __future__ import annotations

import dataclasses

import torch

from conformance.judge import calling, judge, require, worst
from conformance.operands import LinearCase
from conformance.requirements.base import LAYOUT, SMALL, oracle_for, requirement
from conformance.subject import TRAINABLE, Subject, run


@requirement("MEM-INPUTS", "Forward and backward leave x, g, W, b, A and B as they were.", SMALL)
def inputs_unmodified(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    before = {name: tensor.detach().clone() for name, tensor in instance.tensors.items()}
    instance.backward(instance.forward())
    for name, tensor in instance.tensors.items():
        require(torch.equal(tensor.detach(), before[name]), f"{name} was modified in place")
    for name in operands.placed:
        require(not operands.placed[name].contents_changed(), f"{name} was modified in place")
    return None


@requirement("MEM-MARGINS", "Nothing is read or written outside the operands.", LAYOUT)
def margins_untouched(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = run(subject, operands)
    for name, placed in operands.placed.items():
        require(not placed.margins_changed(), f"memory around {name} was written")
    for name in TRAINABLE:
        gradient = instance.gradient(name)
        require(gradient is not None, f"{name} has no gradient")
        assert gradient is not None
        require(not bool(torch.isnan(gradient).any()), f"NaN from outside an operand reached the gradient of {name}")
    return None


@requirement("MEM-OUTPUT", "The caller may modify y in place: no input changes and gradients follow.", SMALL)
def output_belongs_to_caller(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    with calling("y.mul_(2) and the backward pass after it"):
        y = y.mul_(2.0)
    instance.backward(y)
    require(not operands.placed["x"].contents_changed(), "modifying y in place modified x")
    oracle = oracle_for(subject, operands)
    ratios = []
    for name in TRAINABLE:
        single = oracle.gradient(name)
        double = dataclasses.replace(
            single,
            name=f"{single.name} through 2y",
            value=2 * single.value,
            budget=None if single.budget is None else 2 * single.budget,
            terms={term: 2 * part for term, part in single.terms.items()},
        )
        ratios.append(judge(instance.gradient(name), double))
    return worst(*ratios)


@requirement("DET-REPEAT", "The same call gives the same bits every time.", SMALL, weight=0.5)
def deterministic(subject: Subject, case: LinearCase) -> float | None:
    runs: list[list[torch.Tensor | None]] = []
    for _ in range(2):
        instance = subject.build(subject.operands(case))
        instance.require_grad(TRAINABLE)
        y = instance.forward()
        instance.backward(y)
        runs.append([y.detach(), *(instance.gradient(name) for name in TRAINABLE)])
    for name, first, second in zip(("y", "dX", "dA", "dB"), *runs, strict=True):
        require(first is not None and second is not None, f"{name} is None")
        assert first is not None
        assert second is not None
        require(torch.equal(first, second), f"{name} differs between two identical runs")
    return None
