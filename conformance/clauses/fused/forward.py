"""The forward pass of fused blocks: the formulas over sizes, leading dimensions, layouts, dtypes and adapters."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conformance.clauses.fused.block import Block, bound
from conformance.clauses.fused.case import FUSED, LAYOUT, LEADING, MIXED, SMALL, FusedCase
from conformance.clauses.fused.oracle import Oracle
from conformance.judgement.judge import compare, judge, judge_together, worst
from conformance.judgement.outcomes import Refused, Violation, require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.subject import Subject


def judged_outputs(ys: dict[str, torch.Tensor], oracle: Oracle) -> float | None:
    """Judge each output."""
    return worst(*(judge(y, oracle.output(name)) for name, y in ys.items()))


def judged_forward(subject: Subject, case: FusedCase) -> float | None:
    """Judge the outputs, with grad mode set by the case's `training`."""
    block = Block(subject, case)
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    with torch.set_grad_enabled(case.training):
        ys = instance.forward()
    return judged_outputs(ys, Oracle(block))


@clause(
    "FUS-QKV",
    sentence="""lora_qkv(x, q, k, v) returns x W_pᵀ + b_p + s_p·(x A_pᵀ) B_pᵀ for each projection p, each with its
    own width, rank, scale and bias.""",
    cases=FUSED,
    subjects=("lora_qkv",),
)
def test_query_key_and_value(subject: Subject, case: FusedCase) -> float | None:
    return judged_forward(subject, case)


@clause(
    "FUS-MLP",
    sentence="""lora_mlp(x, gate, up, down, activation) returns down(f(gate(x)) ⊙ up(x)), and without a gate
    down(f(up(x))), where f is the activation.""",
    cases=FUSED,
    subjects=("lora_mlp",),
)
def test_feed_forward(subject: Subject, case: FusedCase) -> float | None:
    return judged_forward(subject, case)


@clause(
    "FUS-LEAD",
    sentence="""x may have any number of leading dimensions, including none and empty ones; the outputs have the
    same ones, and the gradients are right.""",
    cases=LEADING,
)
def test_fused_leading_dimensions(subject: Subject, case: FusedCase) -> float | None:
    return judged_all(subject, Block(subject, case))


@clause(
    "FUS-LAYOUT",
    sentence="Outputs and gradients do not depend on the strides or the offset of any operand or upstream gradient.",
    cases=LAYOUT,
)
def test_fused_layouts(subject: Subject, case: FusedCase) -> float | None:
    return judged_all(subject, Block(subject, case))


@clause(
    "FUS-MIXED",
    sentence="""When the adapters' dtype differs from that of x, the outputs keep the dtype of x, and each gradient
    has the dtype of its own operand.""",
    cases=MIXED,
    weight=0.5,
)
def test_fused_mixed_dtypes(subject: Subject, case: FusedCase) -> float | None:
    return judged_all(subject, Block(subject, case))


@clause(
    "FUS-ADAPTERS",
    sentence="""A projection whose lora_A and lora_B are None computes its frozen layer only; the others keep their
    adapters.""",
    cases=SMALL.narrowed(adapters=("second", "first", "third", "none")),
)
def test_fused_absent_adapters(subject: Subject, case: FusedCase) -> float | None:
    return judged_all(subject, Block(subject, case))


@clause(
    "FUS-NONFINITE",
    sentence="""A NaN or infinity in one row of x makes every element of that row of every output non-finite, and
    changes no other row.""",
    cases=SMALL.narrowed(special=("nan", "inf"), values=("normal",)),
    weight=0.5,
)
def test_fused_nonfinite(subject: Subject, case: FusedCase) -> float | None:
    if subject.device == "cpu" and case.dtype in ("bfloat16", "float16"):
        case = dataclasses.replace(case, m=1, lead="2d")  # torch's own CPU products in 16 bits read past a row's end
    block = Block(subject, case)
    ys = bound(subject, block).forward()
    oracle = Oracle(Block(subject, dataclasses.replace(case, special="none")))
    row = case.seed % len(block.rows("x"))
    others = np.arange(len(block.rows("x"))) != row
    ratios = []
    for name, y in ys.items():
        seen, expected = numbers(y).reshape(len(others), -1), oracle.output(name)
        require(
            not np.isfinite(seen[row]).any(),
            f"{name}[{row}] has finite elements although x[{row}] holds a {case.special}",
        )
        assert expected.budget is not None
        rest = dataclasses.replace(expected, value=expected.value[others], budget=expected.budget[others], terms={})
        ratios.append(compare(seen[others], rest))
    return worst(*ratios)


BROKEN = {"lora_qkv": ("q.lora_A", "k.lora_B", "v.weight", "x"), "lora_mlp": ("up.lora_A", "down.lora_B", "x", "gate")}


@clause(
    "FUS-SHAPES",
    sentence="Operands whose features, rank or widths do not chain are refused with an error.",
    cases=SMALL.narrowed(values=("normal",), k=(17, 33), n=(16, 35), o=(3, 17), r=(3, 4), gated=(True,)),
    dtypes=("float32",),
    weight=0.67,
)
def test_fused_operands_that_do_not_chain(subject: Subject, case: FusedCase) -> float | None:
    broken = BROKEN[subject.name][case.seed % 4]
    block = Block(subject, case)
    for name in ("gate.weight", "gate.lora_B", "gate.bias") if broken == "gate" else (broken,):
        if name in block.values:
            values = block.values[name]
            block.values[name] = (values[:-1] if broken == "gate" else values[..., :-1]).copy()
    try:
        bound(subject, block).forward()
    except Refused:
        return None
    except Violation as violation:
        if violation.__cause__ is not None:  # the target raised; without a cause, it returned a malformed result
            return None
        raise
    raise Violation(f"{subject.name} returned although {broken} is too narrow: expected an error")


def judged_all(subject: Subject, block: Block) -> float | None:
    """Judge every output and every gradient; the case decides if one of them can show a wrong result."""
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    ys, oracle = instance.forward(), Oracle(block)
    outputs = [(y, oracle.output(name)) for name, y in ys.items()]
    instance.backward(ys)
    gradients = [(instance.gradient(name), oracle.gradient(name)) for name in block.trainable]
    return judge_together([*outputs, *gradients])
