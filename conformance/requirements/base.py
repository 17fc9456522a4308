"""How a shared requirement is recorded and declared, the case spaces it draws from, and the usual judgements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from conformance.cases.case import Space
from conformance.cases.linear_case import LINEAR, LinearCase
from conformance.cases.memory_layout import LAYOUTS
from conformance.cases.operands import Operands
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import LinearOracle
from conformance.specification.clause import Check, clause
from conformance.target.subject import TRAINABLE, Instance, Subject

TOPICS = (
    "forward",
    "backward",
    "effects",
    "surroundings",
    "modes",
    "relations",
    "dropout",
    "reach",
    "sequences",
    "masks",
)
REQUIREMENTS: list[tuple[str, str, Space[LinearCase], dict[str, Any], Check]] = []

SMALL = LINEAR.narrowed(
    m=(2, 3, 17, 33), k=(3, 17, 33, 70, 130), n=(2, 5, 16, 35, 67), r=(1, 3, 4, 17), scale=(1.0, 2.0, -1.0)
)
LAYOUT = SMALL.narrowed(x=LAYOUTS, g=LAYOUTS, w=LAYOUTS[:-1], ab=LAYOUTS[:-1], lead=("2d", "3d", "4d"))
# not of rank 1: a gradient of rank 0, which an empty batch may make by mistake, autograd sums to the right shape
LEADING = SMALL.narrowed(m=(2, 0, 3, 17, 1), r=(2, 3, 4, 17), lead=("1d", "3d", "4d", "2d", "3d"))


def requirement(
    suffix: str, sentence: str, cases: Space[LinearCase] = LINEAR, **options: Any
) -> Callable[[Check], Check]:
    """Record a check that holds for functions and layers alike; `declare` makes it a clause of a group."""

    def record(check: Check) -> Check:
        REQUIREMENTS.append((suffix, sentence, cases, options, check))
        return check

    return record


def declare(prefix: str, group: str) -> dict[str, Any]:
    """Every shared requirement as a clause `<prefix>-<suffix>` of the group: test functions by name."""
    # in the order a reader expects, whatever order the modules were imported in
    ordered = sorted(REQUIREMENTS, key=lambda recorded: TOPICS.index(recorded[-1].__module__.rpartition(".")[2]))
    return {
        f"test_{check.__name__}": clause(f"{prefix}-{suffix}", sentence, group=group, cases=cases, **options)(check)
        for suffix, sentence, cases, options, check in ordered
    }


def oracle_for(subject: Subject, operands: Operands, **options: Any) -> LinearOracle:
    """The oracle of what this subject computes: with the base product, or the update alone."""
    return LinearOracle(operands, base=subject.has_base, **options)


def output(subject: Subject, operands: Operands) -> torch.Tensor:
    """The subject's output, with grad mode as the case's `training` says."""
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    with torch.set_grad_enabled(operands.case.training):
        return instance.forward()


def judge_gradients(instance: Instance, oracle: LinearOracle, names: tuple[str, ...] = TRAINABLE) -> float | None:
    """Judge the gradient of each named operand."""
    return worst(*(judge(instance.gradient(name), oracle.gradient(name)) for name in names))


def partnered(case: LinearCase) -> LinearCase:
    """The case with an adapter dtype that differs from its own and commonly goes with it."""
    partner = {"float64": "float32", "float32": "bfloat16", "bfloat16": "float32", "float16": "float32"}
    return dataclasses.replace(LINEAR.tame(case), adapter=partner[case.dtype])


MIXED = Space(LinearCase, tame=partnered, **SMALL.values)
