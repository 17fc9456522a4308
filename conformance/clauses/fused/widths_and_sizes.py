"""Widths and sizes of fused blocks: outputs of different widths, one absent adapter, one size beyond the others."""

from __future__ import annotations

import dataclasses

from conformance.clauses.fused.block import Block, Bound
from conformance.clauses.fused.case import SMALL, FusedCase
from conformance.clauses.fused.forward import judged_all, judged_outputs
from conformance.clauses.fused.oracle import Oracle
from conformance.judgement.judge import judge, worst
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
    sentence="q, k and v may have three different widths.",
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
    sentence="""When only one projection has no adapter, it computes its frozen layer only, and the others keep
    their adapters.""",
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
    "FUS-SIZE-LONG",
    sentence="""Outputs and gradients are right when the number of tokens or features, or the rank, exceeds the
    block size of any kernel.""",
    cases=NORMAL,
)
def test_fused_long_size(subject: Subject, case: FusedCase) -> float | None:
    name = tuple(LONG)[case.seed % len(LONG)]
    longer = dataclasses.replace(case, **{name: LONG[name]})  # type: ignore[arg-type]
    return judged_all(subject, Block(subject, case if subject.lane == "interpreter" else longer))
