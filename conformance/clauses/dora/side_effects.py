"""Side effects of a DoRA layer: memory and results that a call must not change, settings, determinism."""

from __future__ import annotations

import dataclasses

import torch

from conformance.cases.linear_case import LinearCase
from conformance.cases.memory_layout import LAYOUTS
from conformance.clauses.dora.oracle import DORA, NAMES, built, oracle_of, ran
from conformance.isolation.process_state import kept
from conformance.judgement.judge import worst
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject

PLACED = DORA.narrowed(x=LAYOUTS[:-1], g=LAYOUTS[:-1], w=LAYOUTS[:-1], lead=("2d", "3d"))


@clause(
    "DORA-MEM-INPUTS",
    sentence="Forward and backward do not modify x, g, W, b, A, B or the magnitude, and write no memory around them.",
    cases=PLACED,
    weight=0.5,
)
def test_inputs_unmodified(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = built(subject, case)
    instance.require_grad(NAMES)
    before = {name: tensor.detach().clone() for name, tensor in instance.tensors.items()}
    instance.backward(instance.forward())
    for name, tensor in instance.tensors.items():
        require(torch.equal(tensor.detach(), before[name]), f"{name} was modified in place")
    for name, placed in oracle.operands.placed.items():
        require(not placed.contents_changed(), f"{name} was modified in place")
        require(not placed.margins_changed(), f"memory around {name} was written")
    return None


@clause(
    "DORA-MEM-LATER",
    sentence="""Later calls do not change the output of an earlier call, the tensors it saved for backward, or its
    gradients.""",
    cases=DORA,
    weight=0.34,
)
def test_later_calls(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = built(subject, case)
    instance.require_grad(NAMES)
    y = instance.forward()
    later = subject.operands(dataclasses.replace(case, seed=case.seed + 1))
    other, upstream = later.placed["x"].tensor.requires_grad_(True), later.placed["g"].tensor
    with calling("a second forward pass before the first's backward"):
        y_other = instance.call(other)
    instance.backward(y)
    with calling("the backward pass of the second"):
        torch.autograd.grad(y_other, other, upstream.to(y_other.dtype))
    return oracle.judged(instance, y)


@clause(
    "DORA-MEM-REFILL",
    sentence="""When the operands get new values in place, all of them or only x, W, b, A, B or the magnitude, the next
    call gives the results of the new values: neither the norm nor anything else is cached.""",
    why="A cache whose key is a part of the operands is stale when only the others change, as with a frozen A.",
    cases=DORA,
    weight=0.34,
)
def test_refilled(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = ran(subject, case)
    magnitude, ratios = instance.tensors["lora_magnitude"], []
    filled = {**instance.tensors, "g": oracle.operands.placed["g"].tensor}
    for i, names in enumerate((tuple(filled), *((name,) for name in filled if name != "g"))):
        new = subject.operands(dataclasses.replace(case, seed=case.seed + 1 + i))
        new.values |= {name: value for name, value in oracle.operands.values.items() if name not in names}
        with torch.no_grad():
            for name, tensor in filled.items():
                if name in names:
                    tensor.copy_(magnitude * 2 if name == "lora_magnitude" else new.placed[name].tensor)
                tensor.grad = None
        y = instance.forward()
        instance.backward(y)
        oracle = oracle_of(subject, new, numbers(magnitude), oracle, names[0] if i else "")
        ratios.append(oracle.judged(instance, y))
    return worst(*ratios)


@clause(
    "DORA-DET-REPEAT", sentence="Repeating a call gives the same y and gradients bit for bit.", cases=DORA, weight=0.25
)
def test_deterministic(subject: Subject, case: LinearCase) -> float | None:
    runs = []
    for _ in range(2):
        instance, _oracle = built(subject, case)
        instance.require_grad(NAMES)
        y = instance.forward()
        instance.backward(y)
        found = {"y": y, **{f"the gradient of {name}": instance.gradient(name) for name in NAMES}}
        runs.append({name: None if tensor is None else tensor.detach().clone() for name, tensor in found.items()})
    for name, first in runs[0].items():
        second = runs[1][name]
        same = first is not None and second is not None and torch.equal(first, second)
        require(same, f"{name} differs between two identical runs")
    return None


@clause(
    "DORA-SIDE-GLOBAL",
    sentence="Forward and backward change no setting of the process and, without dropout, no random state.",
    cases=DORA,
    dtypes=("float32",),
    weight=0.25,
)
def test_settings_kept(subject: Subject, case: LinearCase) -> float | None:
    instance, _ = built(subject, case)
    instance.require_grad(NAMES)
    with kept("the forward pass"):
        y = instance.forward()
    with kept("the backward pass"):
        instance.backward(y)
    return None
