"""Fused blocks further out: widths and adapters of their own, pairs of outputs, sizes, shared memory, later calls."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conformance.fused.block import Block, Bound, bound, run
from conformance.fused.case import SMALL, FusedCase
from conformance.fused.forward import judged_all, judged_outputs
from conformance.fused.oracle import Oracle
from conformance.judgement.judge import Refused, judge, require, worst
from conformance.specification.clause import clause
from conformance.target.subject import Subject

NORMAL = SMALL.narrowed(values=("normal",))
LONG = {"m": 150, "k": 300, "n": 300, "o": 270, "r": 131}


def judged(instance: Bound) -> float | None:
    """Judge every output and every gradient of one call."""
    ys, oracle = instance.forward(), Oracle(instance.block)
    instance.backward(ys)
    gradients = (judge(instance.gradient(name), oracle.gradient(name)) for name in instance.block.trainable)
    return worst(judged_outputs(ys, oracle), *gradients)


@clause(
    "FUS-WIDTHS",
    "q, k and v may each have a width of their own.",
    group="fused",
    cases=SMALL,
    subjects=("lora_qkv",),
    weight=0.34,
)
def test_fused_widths(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    narrow = ("k", "v")[case.seed % 2]
    for operand in ("weight", "bias", "lora_B"):
        if f"{narrow}.{operand}" in block.values:
            block.values[f"{narrow}.{operand}"] = block.values[f"{narrow}.{operand}"][:-1].copy()
    block.values[f"g of {narrow}"] = block.values[f"g of {narrow}"][..., :-1].copy()
    block.outputs[narrow] -= 1
    return judged_all(subject, block)


@clause(
    "FUS-ADAPTERS-PAIR",
    "Where one projection alone has no adapter, it is its frozen layer, and the others keep theirs.",
    group="fused",
    cases=SMALL,
    weight=0.5,
)
def test_fused_one_absent_adapter(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    without = block.names[case.seed % len(block.names)]
    for operand in ("lora_A", "lora_B"):
        del block.values[f"{without}.{operand}"]
    return judged_all(subject, block)


@clause(
    "FUS-BWD-PAIR",
    "Backward from two of q, k and v reaches both projections and x, and not the third.",
    group="fused",
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
    "FUS-MEM-REFILL",
    "Operands that get new values in place give the new result: nothing is kept by address.",
    group="fused",
    cases=SMALL,
    weight=0.34,
)
def test_fused_refilled(subject: Subject, case: FusedCase) -> float | None:
    instance = run(subject, Block(subject, case))
    new = Block(subject, dataclasses.replace(case, seed=case.seed + 1))
    with torch.no_grad():
        for name, placed in instance.block.placed.items():
            placed.tensor.copy_(new.placed[name].tensor)
            placed.tensor.grad = None
    instance.block = new
    return judged(instance)


@clause(
    "FUS-BWD-MICRO",
    "Micro-batches of different sizes add their gradients up.",
    group="fused",
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
    "FUS-SIZE-LONG",
    "Tokens, features or rank may be more than a block of any kernel: outputs and gradients are the same.",
    group="fused",
    cases=NORMAL,
)
def test_fused_long_size(subject: Subject, case: FusedCase) -> float | None:
    name = tuple(LONG)[case.seed % len(LONG)]
    longer = dataclasses.replace(case, **{name: LONG[name]})  # type: ignore[arg-type]
    return judged_all(subject, Block(subject, case if subject.lane == "interpreter" else longer))


@clause(
    "FUS-BWD-SUM",
    "An upstream gradient may be one number, as that of y.sum() is: gradients are the same.",
    group="fused",
    cases=NORMAL,
    weight=0.34,
)
def test_fused_gradient_of_a_sum(subject: Subject, case: FusedCase) -> float | None:
    # their errors add up where all elements are equal, as in expanded operands
    block = Block(subject, dataclasses.replace(case, g="expanded"))
    for name in block.outputs:
        shape = block.values[f"g of {name}"].shape
        block.values[f"g of {name}"] = np.full(shape, 0.5)
        number = torch.full((), 0.5, dtype=block.dtype, device=block.device)
        placed = block.placed[f"g of {name}"]
        block.placed[f"g of {name}"] = dataclasses.replace(placed, tensor=number.expand(shape))
    return judged_all(subject, block)


@clause(
    "FUS-AMP-ENTRY",
    "Under autocast in either 16-bit dtype x may have it already: outputs have it, and each gradient its operand's.",
    group="fused",
    cases=NORMAL.narrowed(autocast=("float16", "bfloat16")),
    dtypes=("float32",),
    weight=0.5,
)
def test_fused_autocast_of_what_it_made(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    instance = bound(subject, block)
    low, narrow = block.computed_in, bool(case.seed % 2)
    if narrow:
        instance.tensors["x"] = instance.tensors["x"].detach().to(low)
    instance.require_grad(block.trainable)
    try:
        with torch.autocast(subject.device.partition(":")[0], dtype=low):
            ys = instance.forward()
    except Refused:
        return None  # it may have no kernel for this dtype; what it has for its own, FUS-AMP judges
    instance.backward(ys)
    oracle = Oracle(block)
    ratios = [judged_outputs(ys, oracle)]
    for name in block.trainable:
        expected = oracle.gradient(name)
        if name == "x" and narrow:
            expected = dataclasses.replace(expected, dtype=low)
        ratios.append(judge(instance.gradient(name), expected))
    return worst(*ratios)
