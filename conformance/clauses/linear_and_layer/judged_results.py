"""Run a subject, and judge its output and gradients by the oracle."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from conformance.cases.operands import Operands
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected, LinearOracle
from conformance.judgement.mid_dropout_oracle import MidDropoutOracle
from conformance.target.subject import TRAINABLE, Instance, Subject


def oracle_for(subject: Subject, operands: Operands, **options: Any) -> LinearOracle:
    """The oracle of this subject: of the whole layer, or of the update alone; with a mask at the case's position."""
    if operands.case.position == "mid" and options.get("mask") is not None:
        return MidDropoutOracle(operands, base=subject.has_base, **options)
    return LinearOracle(operands, base=subject.has_base, **options)


def under_autocast(subject: Subject, expected: Expected, instance: Instance, y: torch.Tensor) -> Expected:
    """The expected y of a call under autocast: in its dtype; where the target declares so, in that of x or of W.

    A library's layer may be the update alone, in the dtype of x, to which the base's product is added: if x has one
    16-bit dtype and autocast the other, the sum has float32.
    """
    if subject.follows("autocast", "layer dtype"):
        return dataclasses.replace(expected, dtype=instance.operands.dtype)
    if not subject.follows("autocast", "input dtype"):
        return expected
    x = instance.tensors["x"].dtype
    summed = torch.promote_types(x, instance.operands.computed_in)
    return dataclasses.replace(expected, dtype=summed if y.dtype == summed else x)


def output(subject: Subject, operands: Operands) -> torch.Tensor:
    """The subject's output, with grad mode set by the case's `training`."""
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    with torch.set_grad_enabled(operands.case.training):
        return instance.forward()


def judge_gradients(instance: Instance, oracle: LinearOracle, names: tuple[str, ...] = TRAINABLE) -> float | None:
    """Judge the gradient of each named operand."""
    return worst(*(judge(instance.gradient(name), oracle.gradient(name)) for name in names))
