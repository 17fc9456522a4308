"""Building a LoRA layer: scale, defaults, initialisation, frozen and trainable parameters, train and eval."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import numpy as np
import torch

from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.cases.seeding import seed_torch
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.clauses.linear_and_layer.dropout import PROBE, read_mask
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import Inconclusive, require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of, scale_of
from conformance.target.calls import calling
from conformance.target.signature import arguments_for, default_of
from conformance.target.subject import TRAINABLE, Instance, Subject, frozen_linear, run

WITH_BIAS = SMALL.narrowed(bias=(True,))
INIT = SMALL.narrowed(m=(1,), k=(256, 300), n=(64, 33), r=(16, 64, 33), values=("normal",), bias=(False,))


def _default(subject: Subject, argument: str, otherwise: Any) -> Any:
    """The default of an argument in the layer's signature; `otherwise` where the signature does not show one."""
    found = default_of(subject.thing, argument)
    return otherwise if found is inspect.Parameter.empty else found


def fresh(subject: Subject, operands: Operands, **options: Any) -> Any:
    """A newly constructed layer over the case's frozen linear layer."""
    seed_torch(operands.case.seed)
    shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
    with calling(f"{subject.name}(linear, {shown})"):
        return subject.thing(frozen_linear(operands), **arguments_for(subject.thing, options))


@clause(
    "LAY-SCALING",
    sentence="The scale is alpha/dim, in y and in the attribute `scale` or `scaling` if the layer has one.",
    feature="alpha",
    cases=SMALL.narrowed(r=(2, 3, 4, 16), values=("normal",)),
    weight=0.5,
)
def test_scaling(subject: Subject, case: LinearCase) -> float | None:
    return _judged_scale(subject, case, rslora=False)


@clause(
    "LAY-RSLORA",
    sentence="""With use_rslora the scale is alpha/√dim, in y and in the attribute `scale` or `scaling` if the layer has
    one.""",
    feature="rslora",
    cases=SMALL.narrowed(r=(2, 3, 4, 16), values=("normal",)),
    weight=0.5,
)
def test_rank_stabilised_scaling(subject: Subject, case: LinearCase) -> float | None:
    return _judged_scale(subject, case, rslora=True)


def _judged_scale(subject: Subject, case: LinearCase, *, rslora: bool) -> float | None:
    alpha = (16, 3, 32)[case.seed % 3]
    scale = alpha / (math.sqrt(case.r) if rslora else case.r)
    operands = subject.operands(dataclasses.replace(case, scale=scale))
    instance = subject.build(operands, alpha=alpha, use_rslora=rslora)
    with calling(f"{subject.name}.scale"):
        seen = scale_of(instance.module)
    if seen is not None:
        require(
            math.isclose(seen, scale, rel_tol=1e-6),
            f"scale is {seen:.6g} for alpha={alpha}, dim={case.r}, use_rslora={rslora}: expected {scale:.6g}",
        )
    instance.require_grad(TRAINABLE)
    return judge(instance.forward(), oracle_for(subject, operands).y)


@clause(
    "LAY-DEFAULTS",
    sentence="""A layer that is built without options has the rank, alpha and dropout of its signature's defaults, which
    for a signature without names are rank 8, alpha 32 and no dropout.""",
    cases=SMALL.narrowed(r=(8,), scale=(4.0,), training=(True,)),
    weight=0.34,
)
def test_defaults(subject: Subject, case: LinearCase) -> float | None:
    rank, alpha, dropout = (_default(subject, *option) for option in (("dim", 8), ("alpha", 32), ("dropout", 0.0)))
    if dropout or not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise Inconclusive(f"the defaults are {rank}, {alpha} and {dropout}: expected numbers and no dropout")
    scale = 1.0 if subject.lacks("alpha") else alpha / rank
    if subject.lacks("large_rank"):
        case = dataclasses.replace(case, k=max(case.k, rank), n=max(case.n, rank))
    operands = subject.operands(dataclasses.replace(case, r=rank, scale=scale))
    layer = fresh(subject, operands)
    for name, shape in (("lora_A", [rank, case.k]), ("lora_B", [case.n, rank])):
        parameter = adapter_of(layer, name)
        require(list(parameter.shape) == shape, f"{name} is {list(parameter.shape)} by default: expected {shape}")
        with torch.no_grad():
            parameter.copy_(operands.placed[name].tensor)
    instance = Instance(layer, {"x": operands.placed["x"].tensor}, operands)
    return judge(instance.forward(), oracle_for(subject, operands).y)


@clause(
    "LAY-INIT",
    sentence="""A new adapter has B = 0, and A distributed as by xavier_normal_ ("xavier") or kaiming_uniform_(a=√5)
    ("uniform" and "kaiming").""",
    feature="initialisation",
    cases=INIT,
    weight=0.5,
)
def test_initialisation(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    method = ("xavier", "uniform", "kaiming")[case.seed % 3]
    layer = fresh(subject, operands, dim=case.r, lora_A_init_method=method)
    require(not numbers(adapter_of(layer, "lora_B")).any(), "a fresh lora_B is not zero")
    values = numbers(adapter_of(layer, "lora_A"))
    bound = 1 / math.sqrt(case.k)
    wanted = math.sqrt(2 / (case.k + case.r)) if method == "xavier" else bound / math.sqrt(3)
    # six relative standard errors of a standard deviation, each at most 1/√(2n), and 16-bit rounding
    slack = 6 / math.sqrt(2 * values.size) + 0.004
    spread = float(values.std())
    require(
        abs(spread / wanted - 1) <= slack,
        f"lora_A ({method}) has standard deviation {spread:.4g}: expected {wanted:.4g} within {slack:.0%}",
    )
    mean = abs(float(values.mean()))
    require(mean <= 6 * wanted / math.sqrt(values.size), f"lora_A ({method}) has mean {mean:.3g}: expected 0")
    # a uniform draw ends at its bound, √3 standard deviations; a normal one of this size always exceeds it
    normal = float(np.abs(values).max()) > 1.01 * bound if method != "xavier" else None
    require(not normal, f"lora_A ({method}) reaches {np.abs(values).max():.4g}: expected at most {bound:.4g}")
    if method == "xavier":
        kurtosis = float((values**4).mean() / spread**4)
        require(
            abs(kurtosis - 3) <= 6 * math.sqrt(24 / values.size) + 0.05,
            f"lora_A (xavier) has kurtosis {kurtosis:.2f}: expected 3, a normal distribution",
        )
    return None


@clause(
    "LAY-FRESH",
    sentence="A new layer computes the same y as the linear layer it was built from.",
    cases=SMALL,
    weight=0.34,
)
def test_fresh_layer(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(dataclasses.replace(case, special="zero-B"))
    layer = fresh(subject, operands, dim=case.r, alpha=case.r)
    instance = Instance(layer, {"x": operands.placed["x"].tensor}, operands)
    return judge(instance.forward(), oracle_for(subject, operands).y)


@clause(
    "LAY-FREEZE",
    sentence="W and b do not require grad and get no gradient; lora_A and lora_B require grad.",
    cases=WITH_BIAS,
    weight=0.34,
)
def test_frozen(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    base: list[str] = [name for name in ("weight", "bias") if name in instance.tensors]
    for name in base:
        require(not instance.tensors[name].requires_grad, f"{name} requires grad: expected it frozen")
    for name in ("lora_A", "lora_B"):
        require(instance.tensors[name].requires_grad, f"{name} does not require grad: expected it trainable")
    instance.tensors["x"].requires_grad_()
    instance.backward(instance.forward())
    for name in base:
        require(instance.gradient(name) is None, f"{name} is frozen and got a gradient")
    return judge_gradients(instance, oracle_for(subject, operands))


@clause(
    "LAY-BIAS",
    sentence="""A bias made trainable by requires_grad_(True) gets the gradient Σ g over all tokens, and the other
    gradients stay right.""",
    feature="base_bias",
    cases=WITH_BIAS,
    weight=0.5,
)
def test_trainable_bias(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = run(subject, operands, (*TRAINABLE, "bias"))
    return judge_gradients(instance, oracle_for(subject, operands), (*TRAINABLE, "bias"))


@clause(
    "LAY-TRAIN",
    sentence="Dropout acts after train() and does nothing after eval(), however often the mode is switched.",
    feature="dropout",
    cases=PROBE,
    weight=0.34,
)
def test_modes(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    seed_torch(case.seed)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    plain = oracle_for(subject, operands).y
    ratios = []
    for training in (True, False, True):
        with calling(f"{subject.name}.train({training})"):
            instance.module.train(training)
        y = instance.forward()
        if training:
            require(not read_mask(y, operands).all(), "nothing was dropped in training")
        else:
            ratios.append(judge(y, dataclasses.replace(plain, name="y in evaluation")))
    return worst(*ratios)
