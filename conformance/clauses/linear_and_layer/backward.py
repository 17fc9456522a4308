"""The backward pass: each gradient, subsets that require grad, accumulation, repetition, double backward."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from conformance.cases.linear_case import LINEAR, LinearCase
from conformance.clauses.linear_and_layer.case_spaces import LAYOUT, LEADING, MIXED, SCALED, SMALL
from conformance.clauses.linear_and_layer.dropout import WITH_DROPOUT, started
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.judgement.judge import compare, judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive, require
from conformance.numerics.formats import Array, numbers
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import unless_it_raises
from conformance.target.subject import TRAINABLE, Subject, run


@clause("LIN-BWD-DX", "LAY-BWD-DX", sentence="dX = g W + s·(g B) A, in the dtype of x.", cases=LINEAR)
def test_gradient_of_x(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge(run(subject, operands).gradient("x"), oracle_for(subject, operands).dX)


@clause("LIN-BWD-DA", "LAY-BWD-DA", sentence="dA = s·(g B)ᵀ x, in the dtype of lora_A.", cases=LINEAR)
def test_gradient_of_lora_A(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge(run(subject, operands).gradient("lora_A"), oracle_for(subject, operands).dA)


@clause("LIN-BWD-DB", "LAY-BWD-DB", sentence="dB = s·gᵀ (x Aᵀ), in the dtype of lora_B.", cases=LINEAR)
def test_gradient_of_lora_B(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge(run(subject, operands).gradient("lora_B"), oracle_for(subject, operands).dB)


@clause(
    "LIN-BWD-LAYOUT",
    "LAY-BWD-LAYOUT",
    sentence="Gradients do not depend on the strides of x, g, W, A and B; x and g may be expanded (stride 0).",
    why="y.sum().backward() passes an expanded g.",
    cases=LAYOUT,
)
def test_gradient_layout(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge_gradients(run(subject, operands), oracle_for(subject, operands))


# no r = 1: autograd would sum a gradient of shape [0, K], a mistake an empty batch may cause, to the right [1, K]
@clause(
    "LIN-BWD-LEAD",
    "LAY-BWD-LEAD",
    sentence="For any leading dimensions of x, dA and dB sum over all of them; an empty batch gives zero dA and dB.",
    cases=LEADING.narrowed(r=(2, 3, 4, 17)),
)
def test_gradient_leading(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge_gradients(run(subject, operands), oracle_for(subject, operands))


@clause(
    "LIN-BWD-MIXED",
    "LAY-BWD-MIXED",
    sentence="When the adapter's dtype differs from that of x, each gradient has the dtype of its own operand.",
    feature="adapter_dtype",
    cases=MIXED,
    weight=0.5,
)
def test_gradient_mixed(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge_gradients(run(subject, operands), oracle_for(subject, operands))


@clause(
    "LIN-BWD-SCALE",
    "LAY-BWD-SCALE",
    sentence="The scale, of any sign and size, multiplies the adapter's part of every gradient.",
    cases=SCALED,
)
def test_gradient_scale(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge_gradients(run(subject, operands), oracle_for(subject, operands))


SUBSETS = (("lora_A",), ("lora_B",), ("x",), ("lora_A", "lora_B"), ("x", "lora_B"), ("x", "lora_A"))


@clause(
    "LIN-BWD-NEEDS",
    "LAY-BWD-NEEDS",
    sentence="Any subset of x, A and B may require grad: its members get their gradients, and the others get none.",
    cases=SMALL,
)
def test_gradient_needs(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    needs = SUBSETS[case.seed % len(SUBSETS)]
    instance = run(subject, operands, needs)
    for name in TRAINABLE:
        if name not in needs:
            require(instance.gradient(name) is None, f"{name} got a gradient although it does not require one")
    return judge_gradients(instance, oracle_for(subject, operands), needs)


@clause(
    "LIN-BWD-ACCUM",
    "LAY-BWD-ACCUM",
    sentence="Backward adds to a gradient that already exists.",
    cases=SMALL.narrowed(values=("integers",)),
    weight=0.5,
)
def test_gradient_accumulates(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    for name in TRAINABLE:
        instance.tensors[name].grad = torch.full_like(instance.tensors[name], 3.0)
    instance.backward(instance.forward())
    oracle = oracle_for(subject, operands)
    sums = []
    for name in TRAINABLE:
        expected = oracle.gradient(name)
        terms = {"existing": np.full_like(expected.value, 3.0), "new": expected.value}
        # a sum of 3 and an exact integer may round where the integer is at the format's limit
        if np.abs(expected.value).max(initial=0) + 3 > operands.exact_limit:
            raise Inconclusive("the sum is no exact integer of the dtype")
        total = dataclasses.replace(
            expected, name=f"{expected.name} added to 3", value=expected.value + 3.0, terms=terms
        )
        sums.append(judge(instance.gradient(name), total))
    return worst(*sums)


@clause(
    "LIN-BWD-TWICE",
    "LAY-BWD-TWICE",
    sentence="Two backward passes over a retained graph give the same gradients.",
    cases=SMALL,
    weight=0.34,
)
def test_gradient_twice(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    instance.backward(y, retain_graph=True)
    first = {name: instance.gradient(name) for name in TRAINABLE}
    for name in TRAINABLE:
        instance.tensors[name].grad = None
    instance.backward(y)
    oracle = oracle_for(subject, operands)
    for name in TRAINABLE:
        judge(first[name], oracle.gradient(name))
        renamed = dataclasses.replace(oracle.gradient(name), name=f"second {oracle.gradient(name).name}")
        judge(instance.gradient(name), renamed)
    return judge_gradients(instance, oracle)


def _probe(shape: tuple[int, ...]) -> Array:
    """Weights from -2 to 2, no two neighbours equal, so that a transposed or summed gradient is noticed."""
    return np.arange(math.prod(shape), dtype=np.float64).reshape(shape) * 2 % 5 - 2


@clause(
    "LIN-BWD-DOUBLE",
    "LAY-BWD-DOUBLE",
    sentence="Double backward gives the right derivatives of a gradient or raises; it is never silently wrong.",
    cases=SMALL.narrowed(
        values=("integers",), m=(2, 5), k=(3, 17), n=(2, 5), r=(1, 3), bias=(False,), lead=("2d", "3d")
    ),
    dtypes=("float64", "float32"),
    weight=0.34,
)
def test_gradient_twice_differentiated(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    leaves = [instance.tensors[name] for name in TRAINABLE]
    upstream = operands.tensor("g")
    y = instance.forward()
    probes = [torch.from_numpy(_probe(tuple(leaf.shape))).to(leaf) for leaf in leaves]
    first = unless_it_raises(lambda: torch.autograd.grad(y, leaves, upstream, create_graph=True))
    if first is None:
        return None  # refusing is allowed
    total = torch.stack([(gradient * probe).sum() for gradient, probe in zip(first, probes, strict=True)]).sum()
    second = unless_it_raises(lambda: torch.autograd.grad(total, leaves, allow_unused=False))
    if second is None:
        return None
    x, g = operands.rows("x"), operands.rows("g")
    down, up, s = operands.values["lora_A"], operands.values["lora_B"], operands.scale
    vx, va, vb = (numbers(probe).reshape(like.shape) for probe, like in zip(probes, (x, down, up), strict=True))
    # h = ⟨dX, vx⟩ + ⟨dA, va⟩ + ⟨dB, vb⟩ differentiated by hand
    wanted = {
        "x": s * (g @ up @ va + g @ vb @ down),
        "lora_A": s * ((g @ up).T @ vx + (g @ vb).T @ x),
        "lora_B": s * (g.T @ (vx @ down.T) + g.T @ (x @ va.T)),
    }
    for (name, value), got in zip(wanted.items(), second, strict=True):
        compare(numbers(got).reshape(value.shape), Expected(f"second derivative by {name}", value, None, got.dtype))
    return None


@clause(
    "LIN-BWD-GRAPH",
    "LAY-BWD-GRAPH",
    sentence="Gradients taken with create_graph=True equal those taken without it, with or without dropout.",
    cases=SMALL.narrowed(
        values=("integers",), dropout=(0.0, 0.5), position=("post", "pre"), training=(True,), lead=("2d", "3d")
    ),
    dtypes=("float64", "float32"),
    weight=0.5,
)
def test_gradients_with_a_graph(subject: Subject, case: LinearCase) -> float | None:
    if subject.name not in WITH_DROPOUT:
        case = dataclasses.replace(case, dropout=0.0)
    operands = subject.operands(case)
    instance = started(subject, operands)
    leaves = [instance.tensors[name] for name in TRAINABLE]
    y = instance.forward()
    upstream = operands.tensor("g")
    with calling("torch.autograd.grad"):
        plain = torch.autograd.grad(y, leaves, upstream, retain_graph=True)
    with calling("torch.autograd.grad with create_graph=True"):
        graphed = torch.autograd.grad(y, leaves, upstream, create_graph=True)
    for name, one, other in zip(TRAINABLE, plain, graphed, strict=True):
        wanted = numbers(one)
        if not wanted.any():
            raise Inconclusive(f"the gradient of {name} is zero")
        # 1/(1-p) is 2 and the operands are small integers: nothing rounds
        compare(numbers(other), Expected(f"the gradient of {name} with create_graph", wanted, None, other.dtype))
    return None
