"""The gradients of an adapted layer on a packed base: dX with both terms, dA, dB, and what passes before backward."""

from __future__ import annotations

import dataclasses

import torch

from conformance.clauses.quantised.case import DTYPES, LAYER, SMALL, PackedCase
from conformance.clauses.quantised.forward import LAYERS
from conformance.clauses.quantised.oracle import PackedOracle
from conformance.clauses.quantised.packed_operands import PackedOperands, adapted, operands_of, run
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import TRAINABLE, Instance, Subject


def judged(subject: Subject, case: PackedCase, *names: str) -> float | None:
    """Judge the gradients of these operands."""
    operands = operands_of(subject, case)
    instance = run(subject, operands)
    oracle = PackedOracle(operands)
    return worst(*(judge(instance.gradient(name), oracle.gradient(name)) for name in names))


@clause(
    "QNT-BWD-DX",
    sentence="""dX = g Ŵ + s·(g B) A, in the dtype of x, in every format. Ŵ may be rounded as in the forward pass.""",
    why="A base product without a graph loses g Ŵ, and every layer before trains on a wrong gradient.",
    cases=LAYER,
    dtypes=DTYPES,
    subjects=LAYERS,
)
def test_gradient_of_x(subject: Subject, case: PackedCase) -> float | None:
    return judged(subject, case, "x")


@clause(
    "QNT-BWD-DA",
    sentence="dA = s·(g B)ᵀ x, in the dtype of lora_A.",
    cases=LAYER,
    dtypes=DTYPES,
    subjects=LAYERS,
    weight=0.67,
)
def test_gradient_of_lora_A(subject: Subject, case: PackedCase) -> float | None:
    return judged(subject, case, "lora_A")


@clause(
    "QNT-BWD-DB",
    sentence="dB = s·gᵀ (x Aᵀ), in the dtype of lora_B.",
    cases=LAYER,
    dtypes=DTYPES,
    subjects=LAYERS,
    weight=0.67,
)
def test_gradient_of_lora_B(subject: Subject, case: PackedCase) -> float | None:
    return judged(subject, case, "lora_B")


@clause(
    "QNT-BWD-NEEDS",
    sentence="""Any subset of x, lora_A and lora_B may require grad: its members get their gradients and the others get
    none. The base's bias and the storage get none.""",
    cases=SMALL,
    dtypes=DTYPES,
    subjects=LAYERS,
    weight=0.5,
)
def test_subsets(subject: Subject, case: PackedCase) -> float | None:
    operands = operands_of(subject, case)
    chosen = 1 + case.seed % 7
    needs = tuple(name for place, name in enumerate(TRAINABLE) if chosen >> place & 1)
    instance = adapted(subject, operands)
    instance.require_grad(needs)
    instance.backward(instance.forward())
    for name in set(TRAINABLE) - set(needs):
        require(instance.gradient(name) is None, f"{name} got a gradient although it does not require one")
    adapters = {id(instance.tensors[name]) for name in ("lora_A", "lora_B")}
    held = [n for n, p in instance.module.named_parameters() if id(p) not in adapters and p.grad is not None]
    require(not held, f"{', '.join(held)} got a gradient although the base is frozen")
    oracle = PackedOracle(operands)
    return worst(*(judge(instance.gradient(name), oracle.gradient(name)) for name in needs))


SEQUENCES = ("eval no_grad", "eval", "train no_grad", "eval train eval no_grad", "eval no_grad train backward eval")


def lived(instance: Instance, sequence: str) -> None:
    """Run calls before the one that is judged: each word changes the mode or the grad mode, or adds a backward pass."""
    x = instance.tensors["x"].detach().clone()
    for word in sequence.split():
        if word in ("train", "eval"):
            with calling(f"{word}()"):
                instance.module.train(word == "train")
        graph = word == "backward"
        with torch.set_grad_enabled(word != "no_grad"), calling("a call before, in another mode"):
            y = instance.module(x.requires_grad_(graph))
        if graph:
            with calling("a backward pass before"):
                y.sum().backward()
    for name in TRAINABLE:
        instance.tensors[name].grad = None


@clause(
    "QNT-BWD-MODES",
    sentence="""y and every gradient are right after any sequence of calls in train and eval mode and without grad, in
    train as in eval mode.""",
    why="A base that repacks its weight for inference must still be able to train.",
    cases=SMALL.narrowed(training=(True, False)),
    dtypes=DTYPES,
    subjects=LAYERS,
    weight=0.67,
)
def test_gradients_after_modes(subject: Subject, case: PackedCase) -> float | None:
    operands = operands_of(subject, case)
    instance = adapted(subject, operands)
    lived(instance, SEQUENCES[case.seed % len(SEQUENCES)])
    instance.module.train(case.training)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    instance.backward(y)
    oracle = PackedOracle(operands)
    return worst(judge(y, oracle.y), *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))


@clause(
    "QNT-BWD-LATER",
    sentence="""The gradients of a layer are right if another layer of the same format and shape runs forward before its
    backward pass; so are those of the other.""",
    why="Scratch memory for Ŵ that calls share, and that backward reads, then holds the other layer's numbers.",
    cases=SMALL,
    dtypes=DTYPES,
    subjects=LAYERS,
    weight=0.67,
)
def test_two_layers(subject: Subject, case: PackedCase) -> float | None:
    first = operands_of(subject, case)
    chosen = [first, PackedOperands(dataclasses.replace(first.case, seed=case.seed + 1), subject.device)]
    instances = [adapted(subject, operands) for operands in chosen]
    for instance in instances:
        instance.require_grad(TRAINABLE)
    outputs = [instance.forward() for instance in instances]
    for instance, y in zip(instances, outputs, strict=True):
        instance.backward(y)
    found = []
    for operands, instance, y in zip(chosen, instances, outputs, strict=True):
        oracle = PackedOracle(operands)
        found += [judge(y, oracle.y), *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE)]
    return worst(*found)


@clause(
    "QNT-BWD-TWICE",
    sentence="Two backward passes over a retained graph give the same gradients.",
    cases=SMALL,
    dtypes=DTYPES,
    subjects=LAYERS,
    weight=0.34,
)
def test_backward_twice(subject: Subject, case: PackedCase) -> float | None:
    operands = operands_of(subject, case)
    instance = adapted(subject, operands)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    oracle, found = PackedOracle(operands), []
    for retain in (True, False):
        for name in TRAINABLE:
            instance.tensors[name].grad = None
        instance.backward(y, retain_graph=retain)
        found += [judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE]
    return worst(*found)
