"""PyTorch's modes around fused blocks: autocast, gradient checkpointing, torch.compile."""

from __future__ import annotations

import warnings

import torch
from torch.utils.checkpoint import checkpoint

from conformance.fused.block import Block, Bound, bound
from conformance.fused.case import SMALL, FusedCase
from conformance.fused.forward import judged_outputs
from conformance.fused.oracle import Oracle
from conformance.judgement.judge import judge, worst
from conformance.specification.clause import clause
from conformance.target.subject import Subject


def judged_after(instance: Bound, ys: dict[str, torch.Tensor]) -> float | None:
    """Run backward and judge everything."""
    oracle = Oracle(instance.block)
    ratio = judged_outputs(ys, oracle)
    instance.backward(ys)
    gradients = (judge(instance.gradient(name), oracle.gradient(name)) for name in instance.block.trainable)
    return worst(ratio, *gradients)


@clause(
    "FUS-AMP",
    "Under autocast the block behaves as the same formulas written with F.linear; backward runs outside the region.",
    group="fused",
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


@clause("FUS-CKPT", "Under gradient checkpointing the gradients are the same.", group="fused", cases=SMALL, weight=0.25)
def test_fused_checkpointing(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    plain = instance.call
    instance.call = lambda x: checkpoint(plain, x, use_reentrant=False)
    return judged_after(instance, instance.forward())


@clause(
    "FUS-COMPILE",
    "torch.compile keeps outputs and gradients.",
    group="fused",
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
    torch._dynamo.reset()
    block = Block(subject, case)
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    # aot_eager captures and partitions the graphs as every backend does, without generating code
    instance.call = torch.compile(instance.call, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler remarks on while tracing is not about results
        return judged_after(instance, instance.forward())
