"""Sums of gradients in fused blocks: from pairs of outputs, over micro-batches, with an expanded upstream gradient."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conformance.clauses.fused.block import Block, bound, run
from conformance.clauses.fused.case import SMALL, FusedCase
from conformance.clauses.fused.forward import judged_all, judged_outputs
from conformance.clauses.fused.oracle import Oracle
from conformance.clauses.fused.widths_and_sizes import NORMAL
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.subject import Subject


@clause(
    "FUS-BWD-PAIR",
    sentence="""Backward from two of q, k and v gives the right gradients to both projections and x, and no or zero
    gradients to the third.""",
    cases=SMALL,
    subjects=("lora_qkv",),
    weight=0.5,
)
def test_fused_two_of_three(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    ys = instance.forward()
    unused = block.names[case.seed % 3]
    chosen = tuple(name for name in block.names if name != unused)
    instance.backward({name: ys[name] for name in chosen})
    oracle, ratios = Oracle(block).only(chosen), []
    for name in block.trainable:
        gradient = instance.gradient(name)
        if not name.startswith(f"{unused}."):
            ratios.append(judge(gradient, oracle.gradient(name)))
        elif gradient is not None:
            require(not bool(gradient.any()), f"{name} got a gradient although {unused} was not used")
    return worst(*ratios)


@clause(
    "FUS-BWD-MICRO",
    sentence="The gradients of micro-batches of different sizes add up.",
    cases=NORMAL,
    weight=0.34,
)
def test_fused_micro_batches(subject: Subject, case: FusedCase) -> float | None:
    first = Block(subject, case)
    second = Block(subject, dataclasses.replace(case, m=case.m + 2, seed=case.seed + 1))
    second.values |= {name: v for name, v in first.values.items() if name != "x" and not name.startswith("g of")}
    instance = run(subject, first)
    instance.block, instance.tensors["x"] = second, second.placed["x"].tensor
    instance.tensors["x"].requires_grad_()
    ys = instance.forward()
    instance.backward(ys)
    before, oracle = Oracle(first), Oracle(second)
    ratios = [judged_outputs(ys, oracle), judge(instance.gradient("x"), oracle.gradient("x"))]
    for name in first.trainable[1:]:
        one, other = before.gradient(name), oracle.gradient(name)
        assert one.budget is not None
        assert other.budget is not None
        both = one.value + other.value
        store = np.abs(both) * max(first.rounding.unit, first.rounding.adapter_unit)
        budget = one.budget + other.budget + store
        terms = {"first": one.value, "second": other.value}
        total = dataclasses.replace(
            other, name=f"{other.name} of 2 micro-batches", value=both, budget=budget, terms=terms
        )
        ratios.append(judge(instance.gradient(name), total))
    return worst(*ratios)


@clause(
    "FUS-BWD-SUM",
    sentence="An upstream gradient may be one expanded number, as for y.sum(); all gradients are right.",
    cases=NORMAL,
    weight=0.34,
)
def test_fused_gradient_of_a_sum(subject: Subject, case: FusedCase) -> float | None:
    # the errors of equal elements add up, as in expanded operands
    block = Block(subject, dataclasses.replace(case, g="expanded"))
    for name in block.outputs:
        shape = block.values[f"g of {name}"].shape
        block.values[f"g of {name}"] = np.full(shape, 0.5)
        number = torch.full((), 0.5, dtype=block.dtype, device=block.device)
        placed = block.placed[f"g of {name}"]
        block.placed[f"g of {name}"] = dataclasses.replace(placed, tensor=number.expand(shape))
    return judged_all(subject, block)
