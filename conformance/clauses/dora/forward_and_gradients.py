"""The output and gradients of a DoRA layer, its initialisation, and weights with rows of extreme or zero norm."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conformance.cases.linear_case import LinearCase
from conformance.clauses.dora.oracle import DORA, NAMES, built, oracle_of, ran
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers, rounded
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import MAGNITUDE, adapter_of
from conformance.target.subject import Subject


@clause(
    "DORA-FWD",
    sentence="""y = m/‖W + s·BA‖_row ⊙ (x Wᵀ + s·(x Aᵀ) Bᵀ) + b, where ‖·‖_row is the norm of each row, one for each
    output feature.""",
    cases=DORA,
)
def test_output(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = built(subject, case)
    with torch.set_grad_enabled(case.training):
        return judge(instance.forward(), oracle.y())


@clause("DORA-BWD-DX", sentence="dX = (m′ ⊙ g)(W + s·BA), where m′ = m/‖W + s·BA‖_row.", cases=DORA)
def test_gradient_of_x(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = ran(subject, case)
    return judge(instance.gradient("x"), oracle.gradient("x"))


@clause(
    "DORA-BWD-DA",
    sentence="dA = s·((m′ ⊙ g) B)ᵀ x: the norm in m′ is detached.",
    why="The DoRA paper treats the norm as a constant in backward, which saves memory.",
    feature="dora_norm",
    cases=DORA,
)
def test_gradient_of_lora_A(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = ran(subject, case)
    return judge(instance.gradient("lora_A"), oracle.gradient("lora_A"))


@clause(
    "DORA-BWD-DB",
    sentence="dB = s·(m′ ⊙ g)ᵀ (x Aᵀ): the norm in m′ is detached.",
    feature="dora_norm",
    cases=DORA,
)
def test_gradient_of_lora_B(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = ran(subject, case)
    return judge(instance.gradient("lora_B"), oracle.gradient("lora_B"))


@clause("DORA-BWD-DM", sentence="dm is the sum over tokens of g ⊙ (x Wᵀ + s·(x Aᵀ) Bᵀ)/‖W + s·BA‖_row.", cases=DORA)
def test_gradient_of_magnitude(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = ran(subject, case)
    return judge(instance.gradient("lora_magnitude"), oracle.gradient("lora_magnitude"))


@clause(
    "DORA-LEAD",
    sentence="Forward and backward take an x with any number of leading dimensions, including none and empty ones.",
    cases=DORA.narrowed(m=(2, 0, 3, 17), lead=("1d", "3d", "4d")),
    weight=0.5,
)
def test_leading(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = built(subject, case)
    instance.require_grad(NAMES)
    y = instance.forward()
    instance.backward(y)
    empty = not len(oracle.x)
    expected = [oracle.gradient(name) for name in NAMES]
    if empty:  # without tokens every gradient is exactly zero
        expected = [dataclasses.replace(e, budget=None, terms={}, certified=False) for e in expected]
    ratios = [judge(instance.gradient(name), e) for name, e in zip(NAMES, expected, strict=True)]
    return worst(judge(y, oracle.y()), *ratios)


@clause(
    "DORA-INIT",
    sentence="A new layer has lora_magnitude = ‖W‖_row and computes the same y as the linear layer.",
    cases=DORA,
    weight=0.5,
)
def test_fresh(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(dataclasses.replace(case, special="zero-B"))
    instance = subject.build(operands, use_dora=True)
    parameter = adapter_of(instance.module, MAGNITUDE)
    norm = np.linalg.norm(operands.values["weight"], axis=1)
    how = operands.rounding
    allowed = norm * (2 * how.unit + how.accumulation(case.k))  # stored in the base's dtype, then in the adapter's
    first = judge(parameter.detach().flatten(), Expected("a fresh lora_magnitude", norm, allowed, parameter.dtype))
    oracle = oracle_of(subject, operands, numbers(parameter))
    expected = dataclasses.replace(oracle.y(), terms={})
    with torch.no_grad():
        return worst(first, judge(instance.forward(), expected))


@clause(
    "DORA-TRAINABLE",
    sentence="lora_magnitude, lora_A and lora_B require grad; W and b do not.",
    cases=DORA.narrowed(bias=(True,)),
    dtypes=("float32",),
    weight=0.2,
)
def test_trainable(subject: Subject, case: LinearCase) -> float | None:
    instance, _ = built(subject, case)
    for name, tensor in instance.tensors.items():
        if name != "x":
            wanted = name not in ("weight", "bias")
            require(
                tensor.requires_grad is wanted,
                f"{name}.requires_grad is {tensor.requires_grad}: expected {wanted}",
            )
    return None


@clause(
    "DORA-FINITE-SIZE",
    sentence="""In float16, the row norm neither overflows nor underflows for weights of the order of 300 or 1e-3,
    although their squares leave the normal range.""",
    cases=DORA.narrowed(bias=(False,)),
    dtypes=("float16",),
    weight=0.5,
)
def test_norm_range(subject: Subject, case: LinearCase) -> float | None:
    # 300² is beyond float16, and 1e-3² below its normal range; x shrinks as W grows, so that y stays in range
    size = (300.0, 1e-3)[case.seed % 2]
    operands = subject.operands(case)
    for name in ("weight", "lora_B"):
        operands.values[name] = rounded(operands.values[name] * size, operands.dtype)
    operands.values["x"] = rounded(operands.values["x"] / max(size, 1.0), operands.dtype)
    instance = subject.build(operands, use_dora=True)
    parameter = adapter_of(instance.module, MAGNITUDE)
    norm = np.linalg.norm(operands.values["weight"], axis=1)
    allowed = norm * (2 * operands.rounding.unit + operands.rounding.accumulation(case.k))
    ratio = judge(parameter.detach().flatten(), Expected("a fresh lora_magnitude", norm, allowed, parameter.dtype))
    with torch.no_grad():
        return worst(ratio, judge(instance.forward(), oracle_of(subject, operands, numbers(parameter)).y()))
