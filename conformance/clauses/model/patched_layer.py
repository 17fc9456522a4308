"""The results of a patched layer: the formula and its gradients, whatever options it was patched with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from conformance.cases.seeding import seed_torch
from conformance.clauses.model.small_models import DoublingLinear
from conformance.clauses.model.target_calls import LAYER, PATCH, PatchCase, bound, patch, patched
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import LinearOracle
from conformance.judgement.outcomes import Violation, require
from conformance.numerics.formats import dtype_named
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import held_magnitude, is_magnitude, scale_of
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import TRAINABLE, Instance, Subject, frozen_linear

FEW = PATCH.narrowed(m=(2, 1, 3), k=(16, 3, 33), n=(5, 1, 16), lead=("2d", "3d"))


@clause(
    "MOD-FRESH",
    sentence="Before it is trained, a patched layer computes what it computed before patching, because lora_B is zero.",
    cases=PATCH.narrowed(special=("zero-B",)),
)
def test_fresh(subject: Subject, case: PatchCase) -> float | None:
    operands = subject.operands(case)
    base = frozen_linear(operands).train(case.training)
    layer = patch(subject, base, dim=case.r, use_triton=case.triton)
    instance = Instance(layer, {"x": operands.placed["x"].tensor}, operands)
    return judge(instance.forward(), LinearOracle(operands).y)


@clause(
    "MOD-FWD",
    sentence="A patched layer computes y = x Wᵀ + b + (alpha/dim)·(x Aᵀ) Bᵀ, with and without use_triton.",
    cases=PATCH,
)
def test_forward(subject: Subject, case: PatchCase) -> float | None:
    operands = subject.operands(case)
    return judge(patched(subject, operands).forward(), LinearOracle(operands).y)


@clause(
    "MOD-BWD",
    sentence="Backward through a patched layer gives dX, dA and dB, and gives W and b no gradient.",
    cases=PATCH,
)
def test_backward(subject: Subject, case: PatchCase) -> float | None:
    return _judged_gradients(subject, case, TRAINABLE)


@clause(
    "MOD-BIAS",
    sentence="""A bias made trainable by requires_grad_(True) after patching gets its gradient, the sum of g over all
    tokens.""",
    cases=PATCH.narrowed(bias=(True,), n=(2, 5, 16, 33)),  # with n = 1 the sum of small integers is often 0
    dtypes=("float32", "bfloat16"),
)
def test_trainable_bias(subject: Subject, case: PatchCase) -> float | None:
    return _judged_gradients(subject, case, ("x", "lora_A", "lora_B", "bias"))


@clause(
    "MOD-MIXED",
    sentence="""Where lora_dtype differs from the layer's dtype, y and dX have the layer's dtype, and dA and dB have
    lora_dtype.""",
    cases=PATCH.narrowed(adapter=("float32", "bfloat16"), spelling=("torch.dtype", "name", "torch.name")),
    feature="adapter_dtype",
    dtypes=("bfloat16", "float16", "float32"),
)
def test_mixed(subject: Subject, case: PatchCase) -> float | None:
    return _judged_gradients(subject, case, TRAINABLE)


@clause(
    "MOD-RSLORA",
    sentence="""The scale is alpha/√dim with use_rslora and alpha/dim without, as the attribute `scale` and in the
    output.""",
    cases=PATCH.narrowed(r=(4, 1, 9, 2), rslora=(True, False), scale=(1.0, 2.0, 4.0)),
    dtypes=("float32",),
    needs=("patch_linear_module(use_rslora)",),
)
def test_rslora(subject: Subject, case: PatchCase) -> float | None:
    if not math.sqrt(case.r).is_integer():  # the scale is then rounded, so results on integers are not exact
        case = dataclasses.replace(case, values="normal")
    operands = subject.operands(case)
    instance = patched(subject, operands)
    with calling("the scale of a patched layer"):
        scale = scale_of(instance.module)
    require(
        scale is None or math.isclose(scale, operands.scale, rel_tol=1e-6),
        f"alpha={operands.scale * (math.sqrt(case.r) if case.rslora else case.r):g}, dim={case.r}, "
        f"use_rslora={case.rslora}: scale is {scale!r}, expected {operands.scale:g}",
    )
    return judge(instance.forward(), LinearOracle(operands).y)


@clause(
    "MOD-MEMORY",
    sentence="use_memory_efficient_lora changes neither y nor any gradient.",
    cases=FEW,
    needs=("patch_linear_module(use_memory_efficient_lora)",),
)
def test_memory_efficient(subject: Subject, case: PatchCase) -> float | None:
    return _judged_gradients(subject, case, TRAINABLE, use_memory_efficient_lora=True)


@clause(
    "MOD-OWN-FORWARD",
    sentence="""Patching an nn.Linear subclass with its own forward keeps that forward for the base product, or is
    refused; it never replaces the forward silently.""",
    why="The weight of a quantised layer is a number only to the layer's own forward.",
    cases=FEW,
    level="SHOULD",
    dtypes=("float32",),
)
def test_own_forward(subject: Subject, case: PatchCase) -> float | None:
    operands = subject.operands(case)
    plain = frozen_linear(operands)
    own = DoublingLinear(case.k, case.n, bias=case.bias).requires_grad_(False).train(case.training)
    own.load_state_dict(plain.state_dict())
    own = own.to(subject.device)
    try:
        with calling_quietly("patch_linear_module(DoublingLinear)"):
            layer = _attempt(lambda: subject.target.patch_linear_module(own, case.r, case.scale * case.r))
    except _Declined:
        return None
    y, expected = bound(layer, operands).forward(), LinearOracle(operands).y
    base = sum(expected.terms[name] for name in ("base", "bias") if name in expected.terms)
    doubled = {name: term * (1 if name == "adapter" else 2) for name, term in expected.terms.items()}
    budget = None if expected.budget is None else 2 * expected.budget
    return judge(y, dataclasses.replace(expected, value=expected.value + base, budget=budget, terms=doubled))


class _Declined(Exception):  # noqa: N818
    """The target refused an input, as it may."""


def _attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _Declined from error


@clause(
    "MOD-DORA",
    sentence="""With use_dora a patched layer has a trainable Parameter lora_magnitude [N] that starts as the norms of
    the rows of W.""",
    cases=LAYER,
    dtypes=("float32",),
    needs=("patch_linear_module(use_dora)",),
    weight=0.5,
)
def test_dora(subject: Subject, case: PatchCase) -> None:
    for sizes in ((case.k, case.n), (3, 3)):  # in a square W only the values tell row norms from column norms
        _require_magnitude(subject, case, *sizes)


def _require_magnitude(subject: Subject, case: PatchCase, features: int, rows: int) -> None:
    seed_torch(case.seed)
    base = nn.Linear(features, rows, bias=case.bias).to(subject.device, dtype_named(case.dtype))
    norms = base.weight.detach().norm(dim=1)
    layer = patch(subject, base, dim=case.r, use_triton=case.triton, use_dora=True)
    magnitude = held_magnitude(layer)
    if not isinstance(magnitude, nn.Parameter):
        raise Violation(f"lora_magnitude is a {type(magnitude).__name__}: not a Parameter")
    require(is_magnitude(magnitude, rows), f"lora_magnitude is {list(magnitude.shape)}: expected [{rows}]")
    require(magnitude.requires_grad, "lora_magnitude is frozen: expected a trainable Parameter")
    require(
        bool(torch.allclose(magnitude.detach().flatten(), norms, rtol=1e-5)),
        f"lora_magnitude is {magnitude.tolist()[:3]}: the weight's rows have norms {norms.tolist()[:3]}",
    )


def _judged_gradients(subject: Subject, case: PatchCase, names: tuple[str, ...], **options: Any) -> float | None:
    operands = subject.operands(case)
    instance = patched(subject, operands, **options)
    instance.require_grad(names)
    y = instance.forward()
    instance.backward(y)
    for name in (name for name in ("weight", "bias") if name not in names):
        gradient = instance.tensors[name].grad if name in instance.tensors else None
        require(gradient is None, f"{name} got a gradient although it is frozen")
    oracle = LinearOracle(operands)
    return worst(judge(y, oracle.y), *(judge(instance.gradient(name), oracle.gradient(name)) for name in names))
