"""Side effects of clipping: gradients in place, other memory and settings unchanged, any iterable, determinism."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch

from conformance.cases.memory_layout import LAYOUTS
from conformance.clauses.gradnorm.gradients import GRADIENTS, Gradients, GradientsCase
from conformance.clauses.gradnorm.norm import clip
from conformance.isolation.process_state import kept
from conformance.judgement.judge import compare
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.subject import Subject

FEW = GRADIENTS.narrowed(elements=(3, 17, 64, 1), tensors=(2, 1, 3), clip=(0.5, 2.0))
CONTAINERS: dict[str, Callable[[list[Any]], Iterable[Any]]] = {
    "a tuple": tuple,
    "an iterator": iter,
    "a generator": lambda parameters: (p for p in parameters),
}


def _bits_equal(a: Any, b: Any) -> bool:
    return isinstance(a, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)


@clause(
    "GRN-ITERABLE",
    sentence="""A list, a tuple, an iterator and a generator of the same parameters give the same norm and gradients
    bit for bit.""",
    cases=FEW,
    weight=0.5,
)
def test_iterables(subject: Subject, case: GradientsCase) -> float | None:
    listed = Gradients.of(subject, case)
    norm = clip(subject, listed, listed.max_norm)
    for name, made in CONTAINERS.items():
        other = Gradients.of(subject, case)
        again = clip(subject, other, other.max_norm, made(other.parameters))
        require(_bits_equal(again, norm), f"{name} of {other} gives the norm {again}: a list gives {norm}")
        for i, (a, b) in enumerate(zip(other.with_gradient, listed.with_gradient, strict=True)):
            require(_bits_equal(a.grad, b.grad), f"gradient {i} after clipping {name} differs from that of a list")
    return None


@clause(
    "GRN-INPLACE",
    sentence="Clipping works in place: each parameter keeps its gradient tensor, and that tensor keeps its memory.",
    cases=FEW.narrowed(layout=LAYOUTS[:-1]),
    weight=0.5,
)
def test_in_place(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    # hold the tensors, so that no new one gets an old address
    held = [p.grad for p in gradients.with_gradient]
    memory = [None if g is None else (g.data_ptr(), g.stride()) for g in held]
    clip(subject, gradients, gradients.max_norm)
    for i, parameter in enumerate(gradients.with_gradient):
        now = parameter.grad
        require(now is held[i], f"parameter {i} has another gradient tensor after clip_grad_norm_")
        assert now is not None
        require((now.data_ptr(), now.stride()) == memory[i], f"gradient {i} moved in memory")
    return None


@clause(
    "GRN-PARAMETERS",
    sentence="Clipping changes neither the values of the parameters nor their requires_grad.",
    cases=FEW,
    weight=0.5,
)
def test_parameters_unchanged(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    before = [p.detach().clone() for p in gradients.parameters]
    clip(subject, gradients, gradients.max_norm)
    for parameter, value in zip(gradients.parameters, before, strict=True):
        shape = list(parameter.shape)
        require(torch.equal(parameter.detach(), value), f"clip_grad_norm_ modified a parameter of shape {shape}")
        require(parameter.requires_grad, f"a parameter of shape {shape} no longer requires grad")
    return None


@clause(
    "GRN-MARGINS",
    sentence="Clipping writes no memory outside the gradients.",
    cases=FEW.narrowed(layout=("padded", "strided", "offset", "transposed"), clip=(0.5, 0.01)),
)
def test_margins_untouched(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case, finite_margins=True)
    clip(subject, gradients, gradients.max_norm)
    for i, placed in enumerate(gradients.placed):
        require(not placed.margins_changed(), f"memory beside gradient {i} was written (layout {case.layout})")
    return None


@clause(
    "GRN-REPEAT",
    sentence="Repeating a call with the same gradients gives the same norm and gradients bit for bit.",
    cases=FEW.narrowed(elements=(1000, 257, 4099)),
    weight=0.5,
)
def test_deterministic(subject: Subject, case: GradientsCase) -> float | None:
    first, second = Gradients.of(subject, case), Gradients.of(subject, case)
    norms = [clip(subject, gradients, gradients.max_norm) for gradients in (first, second)]
    require(_bits_equal(*norms), f"two identical calls give the norms {norms[0]} and {norms[1]}")
    for i, (a, b) in enumerate(zip(first.with_gradient, second.with_gradient, strict=True)):
        require(_bits_equal(a.grad, b.grad), f"gradient {i} differs between two identical calls")
    return None


@clause(
    "GRN-SIDE-GLOBAL",
    sentence="Clipping changes no setting of the process and no random state.",
    cases=FEW,
    dtypes=("float32",),
    weight=0.25,
)
def test_settings_kept(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    with kept("clip_grad_norm_"):
        clip(subject, gradients, gradients.max_norm)
    return None


@clause(
    "GRN-LATER",
    sentence="""Later calls do not change a norm returned earlier, and after gradients get new values in place, the
    norm is that of the new values.""",
    cases=FEW,
    weight=0.5,
)
def test_later_calls(subject: Subject, case: GradientsCase) -> float | None:
    gradients = Gradients.of(subject, case)
    norm = clip(subject, gradients, 4 * gradients.norm + 1)
    with torch.no_grad():
        for parameter in gradients.with_gradient:
            assert parameter.grad is not None
            parameter.grad.mul_(4)
    again = clip(subject, gradients, 16 * gradients.norm + 1)
    expected = gradients.expected_norm()
    for tensor, times in ((norm, 1), (again, 4)):
        require(isinstance(tensor, torch.Tensor), f"the norm is a {type(tensor).__name__}: expected a torch.Tensor")
        compare(numbers(tensor), _times(expected, times))
    return None


def _times(expected: Expected, factor: int) -> Expected:
    budget = None if expected.budget is None else factor * expected.budget
    return dataclasses.replace(expected, name=f"the norm of {factor} g", value=factor * expected.value, budget=budget)
