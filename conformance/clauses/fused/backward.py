"""The backward pass of fused blocks: each gradient, subsets, accumulation, repetition, no cross-talk."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

import reference
from conformance.clauses.fused.block import Block, bound, run
from conformance.clauses.fused.case import FUSED, SMALL, FusedCase
from conformance.clauses.fused.oracle import Oracle
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import Inconclusive, require
from conformance.judgement.second_derivatives import judge_second_derivatives, second_derivatives
from conformance.numerics.formats import format_of
from conformance.specification.clause import clause
from conformance.target.expected_errors import unless_it_raises
from conformance.target.subject import Subject

TRAINED = FUSED.narrowed(training=(True,))
PLAIN = {"lora_qkv": reference.lora_qkv, "lora_mlp": reference.lora_mlp}  # their double backward is autograd's


def judged_gradients(subject: Subject, case: FusedCase, kind: str) -> float | None:
    """Judge the gradients of every operand of one kind."""
    block = Block(subject, case)
    chosen = [name for name in block.values if name == kind or name.endswith(f".{kind}")]
    instance, oracle = run(subject, block, (*block.trainable, *chosen)), Oracle(block)
    return worst(*(judge(instance.gradient(name), oracle.gradient(name)) for name in chosen))


@clause(
    "FUS-BWD-DX",
    sentence="dX is the sum of the contributions of all paths through the block, in the dtype of x.",
    cases=TRAINED,
)
def test_fused_gradient_of_x(subject: Subject, case: FusedCase) -> float | None:
    return judged_gradients(subject, case, "x")


@clause(
    "FUS-BWD-DA",
    sentence="""Each projection has dA = s·(g B)ᵀ t, with its own upstream gradient g, B, s and input t, in the
    dtype of its lora_A.""",
    cases=TRAINED,
)
def test_fused_gradients_of_lora_A(subject: Subject, case: FusedCase) -> float | None:
    return judged_gradients(subject, case, "lora_A")


@clause(
    "FUS-BWD-DB",
    sentence="""Each projection has dB = s·gᵀ (t Aᵀ), with its own upstream gradient g, A, s and input t, in the
    dtype of its lora_B.""",
    cases=TRAINED,
)
def test_fused_gradients_of_lora_B(subject: Subject, case: FusedCase) -> float | None:
    return judged_gradients(subject, case, "lora_B")


@clause(
    "FUS-BWD-DBIAS",
    sentence="A bias that requires grad gets the sum over tokens of its projection's upstream gradient.",
    level="SHOULD",  # a trainable bias is an option of layers only
    feature="block_bias",
    cases=SMALL.narrowed(bias=("all", "second")),
    weight=0.34,
)
def test_fused_gradients_of_the_bias(subject: Subject, case: FusedCase) -> float | None:
    return judged_gradients(subject, case, "bias")


@clause(
    "FUS-BWD-ALONE",
    sentence="""Backward from one of q, k and v alone gives the right gradients to its own projection and x, and no
    or zero gradients to the other projections.""",
    cases=SMALL,
    subjects=("lora_qkv",),
    weight=0.5,
)
def test_no_gradient_crosses_over(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    ys = instance.forward()
    chosen = block.names[case.seed % 3]
    instance.backward({chosen: ys[chosen]})
    oracle, ratios = Oracle(block).only((chosen,)), []
    for name in block.trainable:
        gradient = instance.gradient(name)
        if name == "x" or name.startswith(f"{chosen}."):
            ratios.append(judge(gradient, oracle.gradient(name)))
        elif gradient is not None:
            require(not bool(gradient.any()), f"{name} got a gradient from {chosen} alone")
    return worst(*ratios)


@clause(
    "FUS-BWD-NEEDS",
    sentence="""Any subset of x and the adapters' A and B may require grad: its members get their gradients, and the
    others get none.""",
    cases=SMALL,
)
def test_fused_subsets(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    chosen = np.random.default_rng(case.seed).random(len(block.trainable)) < 0.4
    chosen[case.seed % len(chosen)] = True
    needs = tuple(name for name, keep in zip(block.trainable, chosen, strict=True) if keep)
    instance, oracle = run(subject, block, needs), Oracle(block)
    for name in block.trainable:
        if name not in needs:
            require(instance.gradient(name) is None, f"{name} got a gradient although it does not require one")
    return worst(*(judge(instance.gradient(name), oracle.gradient(name)) for name in needs))


@clause(
    "FUS-BWD-FROZEN",
    sentence="The weights are frozen: they get no gradient, even when they require grad.",
    cases=SMALL,
    weight=0.34,
)
def test_fused_weights_are_frozen(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    weights = tuple(f"{name}.weight" for name in block.names)
    instance = run(subject, block, (*block.trainable, *weights))
    for name in weights:
        require(instance.gradient(name) is None, f"{name} got a gradient although it is frozen")
    return None


@clause("FUS-BWD-ACCUM", sentence="Backward adds to a gradient that already exists.", cases=SMALL, weight=0.5)
def test_fused_accumulation(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    for name in block.trainable:
        instance.tensors[name].grad = torch.full_like(instance.tensors[name], 3.0)
    instance.backward(instance.forward())
    oracle, ratios = Oracle(block), []
    for name in block.trainable:
        expected = oracle.gradient(name)
        if expected.budget is None and np.abs(expected.value).max(initial=0) + 3 > format_of(expected.dtype).exact:
            raise Inconclusive("the sum is no exact integer of the dtype")
        total = expected.value + 3.0
        store = format_of(expected.dtype).unit * np.abs(total)
        ratios.append(
            judge(
                instance.gradient(name),
                dataclasses.replace(
                    expected,
                    name=f"{expected.name} added to 3",
                    value=total,
                    budget=None if expected.budget is None else expected.budget + store,
                    terms={"existing": np.full_like(total, 3.0), "new": expected.value},
                ),
            )
        )
    return worst(*ratios)


@clause(
    "FUS-BWD-TWICE",
    sentence="Two backward passes over a retained graph give the same gradients.",
    cases=SMALL,
    weight=0.34,
)
def test_fused_backward_twice(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    instance, oracle, ratios = bound(subject, block), Oracle(block), []
    instance.require_grad(block.trainable)
    ys = instance.forward()
    for time in ("first", "second"):
        for name in block.trainable:
            instance.tensors[name].grad = None
        instance.backward(ys, retain_graph=True)
        for name in block.trainable:
            expected = oracle.gradient(name)
            renamed = dataclasses.replace(expected, name=f"{time} {expected.name}")
            ratios.append(judge(instance.gradient(name), renamed))
    return worst(*ratios)


@clause(
    "FUS-BWD-DOUBLE",
    sentence="Double backward gives the right derivatives of a gradient or raises; it is never silently wrong.",
    cases=SMALL.narrowed(values=("normal",), m=(2, 5), k=(3, 17), n=(5,), o=(3,), r=(1, 3), lead=("2d", "3d")),
    dtypes=("float64",),
    weight=0.34,
)
def test_fused_second_derivatives(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    ys = instance.forward()
    got = unless_it_raises(lambda: _second(ys, instance.tensors, block))
    if got is None:
        return None  # refusing is allowed
    plain = bound(dataclasses.replace(subject, thing=PLAIN[subject.name]), block)
    judge_second_derivatives(got, _second(plain.forward(), plain.tensors, block))
    return None


def _second(ys: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], block: Block) -> dict[str, torch.Tensor]:
    """The gradients of the sum of all squared gradients."""
    leaves = {name: tensors[name] for name in block.trainable}
    return second_derivatives(list(ys.values()), leaves, [block.placed[f"g of {name}"].tensor for name in ys])
