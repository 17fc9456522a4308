"""PyTorch's modes around fused blocks: autocast, gradient checkpointing, torch.compile."""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch.utils.checkpoint import checkpoint

from conformance.clauses.fused.block import Block, Bound, bound
from conformance.clauses.fused.case import SMALL, FusedCase
from conformance.clauses.fused.forward import judged_outputs
from conformance.clauses.fused.oracle import Oracle
from conformance.clauses.fused.widths_and_sizes import NORMAL
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import Refused
from conformance.specification.clause import clause
from conformance.target.subject import Subject


def judged_after(instance: Bound, ys: dict[str, torch.Tensor]) -> float | None:
    """Run backward, and judge every output and every gradient."""
    oracle = Oracle(instance.block)
    ratio = judged_outputs(ys, oracle)
    instance.backward(ys)
    gradients = (judge(instance.gradient(name), oracle.gradient(name)) for name in instance.block.trainable)
    return worst(ratio, *gradients)


@clause(
    "FUS-AMP",
    sentence="""Under autocast the block behaves like the same formulas written with F.linear; backward runs outside
    the autocast region.""",
    feature="autocast",
    cases=SMALL.narrowed(autocast=("bfloat16",)),
    dtypes=("float32",),
    weight=0.5,
)
def test_fused_autocast(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    with torch.autocast(subject.device.partition(":")[0], dtype=block.computed_in):
        ys = instance.forward()
    return judged_after(instance, ys)


@clause(
    "FUS-CKPT",
    sentence="Under gradient checkpointing, the outputs and gradients are the same.",
    cases=SMALL,
    weight=0.25,
)
def test_fused_checkpointing(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    plain = instance.call
    instance.call = lambda x: checkpoint(plain, x, use_reentrant=False)
    return judged_after(instance, instance.forward())


@clause(
    "FUS-COMPILE",
    sentence="Under torch.compile, the outputs and gradients are the same.",
    cases=SMALL.narrowed(
        m=(3,),
        k=(17,),
        n=(5,),
        o=(3,),
        r=(3,),
        ranks=("equal",),
        scale=(2.0,),
        bias=("all",),
        activation=("silu", "relu2"),
        values=("normal",),
    ),
    dtypes=("float32", "bfloat16"),
    weight=0.05,
)
def test_fused_compiled(subject: Subject, case: FusedCase) -> float | None:
    torch.compiler.reset()
    block = Block(subject, case)
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    # aot_eager captures and partitions the graphs as every backend does, without generating code
    instance.call = torch.compile(instance.call, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's warnings do not concern results
        return judged_after(instance, instance.forward())


@clause(
    "FUS-AMP-ENTRY",
    sentence="""Under autocast to float16 or bfloat16, x may already have that dtype, unless the call raises
    NotImplementedError: the outputs have that dtype, and each gradient has the dtype of its operand.""",
    feature="autocast",
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
        return None  # the target may lack a kernel for this dtype; FUS-AMP judges the dtype it must have
    instance.backward(ys)
    oracle = Oracle(block)
    ratios = [judged_outputs(ys, oracle)]
    for name in block.trainable:
        expected = oracle.gradient(name)
        if name == "x" and narrow:
            expected = dataclasses.replace(expected, dtype=low)
        ratios.append(judge(instance.gradient(name), expected))
    return worst(*ratios)
