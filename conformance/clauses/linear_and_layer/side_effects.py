"""Side effects of a call: memory it must not change, results that later calls must not change, determinism."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from conformance.cases.linear_case import LinearCase
from conformance.cases.operand_values import weighed
from conformance.cases.operands import Operands
from conformance.clauses.linear_and_layer.case_spaces import LAYOUT, SMALL
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected, LinearOracle
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import TRAINABLE, Instance, Subject, run


@clause(
    "LIN-MEM-INPUTS",
    "LAY-MEM-INPUTS",
    sentence="Forward and backward do not modify x, g, W, b, A or B.",
    cases=SMALL,
    weight=0.67,
)
def test_inputs_unmodified(subject: Subject, case: LinearCase) -> float | None:
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


@clause(
    "LIN-MEM-MARGINS",
    "LAY-MEM-MARGINS",
    sentence="Forward and backward read and write no memory outside the operands.",
    cases=LAYOUT,
    weight=0.5,
)
def test_margins_untouched(subject: Subject, case: LinearCase) -> float | None:
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


@clause(
    "LIN-MEM-OUTPUT",
    "LAY-MEM-OUTPUT",
    sentence="The caller may modify y in place: no input changes, and the gradients are those of the modified y.",
    why="In-place activations and residual additions do this to a layer's output.",
    feature="inplace_output",
    cases=SMALL.narrowed(lead=("2d", "3d")),  # a reshaped y may be a view, which autograd protects
    weight=0.5,
)
def test_output_belongs_to_caller(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    before = {name: tensor.detach().clone() for name, tensor in instance.tensors.items()}
    with calling("y.mul_(2) and the backward pass after it"):
        y = y.mul_(2.0)
    for name, tensor in instance.tensors.items():
        require(torch.equal(tensor.detach(), before[name]), f"modifying y in place modified {name}")
    instance.backward(y)
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


@clause(
    "LIN-DET-REPEAT",
    "LAY-DET-REPEAT",
    sentence="Repeating a call gives the same y and gradients bit for bit.",
    cases=SMALL,
    weight=0.5,
)
def test_deterministic(subject: Subject, case: LinearCase) -> float | None:
    runs: list[list[torch.Tensor | None]] = []
    for _ in range(2):
        instance = subject.build(subject.operands(case))
        instance.require_grad(TRAINABLE)
        y = instance.forward()
        instance.backward(y)
        # copies, since the second run may write over what the first gave
        runs.append([_copy(tensor) for tensor in (y, *(instance.gradient(name) for name in TRAINABLE))])
    for name, first, second in zip(("y", "dX", "dA", "dB"), *runs, strict=True):
        require(first is not None and second is not None, f"{name} is None")
        assert first is not None
        assert second is not None
        require(torch.equal(first, second), f"{name} differs between two identical runs")
    return None


def _copy(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().clone()


@clause(
    "LIN-MEM-LATER",
    "LAY-MEM-LATER",
    sentence="""Later calls do not change the output of an earlier call, the tensors it saved for backward, or its
    gradients.""",
    why="A workspace shared between calls breaks models that run a layer twice before backward.",
    cases=SMALL,
    weight=0.34,
)
def test_later_calls(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    later = subject.operands(dataclasses.replace(case, seed=case.seed + 1))
    other, upstream = later.placed["x"].tensor.requires_grad_(True), later.placed["g"].tensor
    with calling("a second forward pass before the first's backward"):
        y_other = instance.call(other)
    instance.backward(y)
    with calling("the backward pass of the second"):
        torch.autograd.grad(y_other, other, upstream.to(y_other.dtype))
    oracle = oracle_for(subject, operands)
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle))


@clause(
    "LIN-MEM-REFILL",
    "LAY-MEM-REFILL",
    sentence="""When the operands get new values in place, all of them or only one, the next call gives the results of
    the new values: nothing is cached by the address or the version of a part of them.""",
    why="Every optimiser step changes the adapter in place; with a frozen lora_A it changes lora_B alone.",
    cases=SMALL,
    weight=0.34,
)
def test_refilled(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    instance.backward(instance.forward())
    filled, ratios = {**instance.tensors, "g": operands.placed["g"].tensor}, []
    for i, names in enumerate((tuple(filled), *((name,) for name in filled if name != "g"))):
        new = refilled(subject, operands, case.seed + 1 + i, names)
        if new.exact and weighed({"bias": np.zeros(case.n), **new.values}, new.scale)[0] > new.exact_limit:
            continue  # of two draws together an intermediate is no exact integer of the dtype
        with torch.no_grad():
            for name, tensor in filled.items():
                if name in names:
                    tensor.copy_(new.placed[name].tensor)
                tensor.grad = None
        y = instance.forward()
        instance.backward(y)
        ratios.append(
            _judged_refill(instance, y, oracle_for(subject, new), stale_oracles(subject, new, operands, names))
        )
        operands = new
    return worst(*ratios)


def refilled(subject: Subject, old: Operands, seed: int, names: Sequence[str]) -> Operands:
    """The operands of a case of this seed for these names, and the old ones for the others."""
    new = subject.operands(dataclasses.replace(old.case, seed=seed))
    new.values = new.values | {name: value for name, value in old.values.items() if name not in names}
    return new


def _judged_refill(
    instance: Instance, y: torch.Tensor, oracle: LinearOracle, earlier: dict[str, LinearOracle]
) -> float | None:
    """Judge y and the gradients by the new operands; the pattern of an error compares it with stale caches."""

    def judged(actual: torch.Tensor | None, of: Callable[[LinearOracle], Expected]) -> float:
        mistakes = {words: of(stale).value for words, stale in earlier.items()}
        return judge(actual, dataclasses.replace(of(oracle), mistakes=mistakes))

    gradients = (judged(instance.gradient(name), partial(LinearOracle.gradient, of=name)) for name in TRAINABLE)
    return worst(judged(y, lambda found: found.y), *gradients)


def stale_oracles(subject: Subject, new: Operands, old: Operands, changed: Sequence[str]) -> dict[str, LinearOracle]:
    """By its words for a stale cache of an operand, or of all, the oracle of the results that it gives."""
    found = {}
    for names in (("weight",), ("bias",), ("lora_A",), ("lora_B",), ("lora_A", "lora_B"), tuple(old.values)):
        if set(names) <= {*changed} & {*old.values}:
            mixed = copy.copy(new)
            mixed.values = new.values | {name: old.values[name] for name in names}
            which = " and ".join(names) if len(names) < 3 else "all operands"
            found[f"{which} had their values of the earlier call (a stale cache)"] = oracle_for(subject, mixed)
    return found
