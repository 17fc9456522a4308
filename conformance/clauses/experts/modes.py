"""PyTorch's modes around grouped layers: autocast, gradient checkpointing, torch.compile."""

from __future__ import annotations

import warnings

import torch
from torch.utils.checkpoint import checkpoint

from conformance.clauses.experts.case import SMALL, GroupedCase
from conformance.clauses.experts.forward import FUNCTIONS, PLAIN, judged
from conformance.clauses.experts.grouped import TRAINABLE, Grouped, bound
from conformance.clauses.experts.oracle import Oracle
from conformance.judgement.judge import judge, worst
from conformance.specification.clause import clause
from conformance.target.subject import Subject


@clause(
    "EXP-AMP",
    sentence="""Under autocast a grouped layer behaves like the formula written with F.linear for each expert; backward
    runs outside the autocast region.""",
    feature="autocast",
    cases=SMALL.narrowed(autocast=("bfloat16",), base=(True,)),
    dtypes=("float32",),
    subjects=FUNCTIONS,
    weight=0.5,
)
def test_grouped_autocast(subject: Subject, case: GroupedCase) -> float | None:
    grouped = Grouped(subject, case)
    instance, oracle = bound(subject, grouped), Oracle(grouped)
    instance.require_grad()
    with torch.autocast(subject.device.partition(":")[0], dtype=grouped.computed_in):
        y = instance.forward()
    ratio = judge(y, oracle.y)
    instance.backward(y)
    return worst(ratio, *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))


@clause(
    "EXP-CKPT",
    sentence="Under gradient checkpointing the output and the gradients are the same.",
    cases=SMALL,
    subjects=FUNCTIONS,
    weight=0.25,
)
def test_grouped_checkpointing(subject: Subject, case: GroupedCase) -> float | None:
    instance = bound(subject, Grouped(subject, case))
    plain = instance.call
    instance.call = lambda x: checkpoint(plain, x, use_reentrant=False)
    return judged(instance)


@clause(
    "EXP-COMPILE",
    sentence="Under torch.compile the output and the gradients are the same, whatever experts the rows choose.",
    cases=SMALL.narrowed(
        m=(7,),
        k=(8,),
        n=(5,),
        experts=(2,),
        routing=("uneven", "idle-first"),
        scale=(2.0,),
        values=("normal",),
        base=(True,),
    ),
    dtypes=("float32",),
    subjects=PLAIN,
    weight=0.01,
)
def test_compiled_grouped_layer(subject: Subject, case: GroupedCase) -> float | None:
    torch.compiler.reset()
    instance = bound(subject, Grouped(subject, case))
    # aot_eager captures and partitions the graphs as every backend does, without generating code
    instance.call = torch.compile(instance.call, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's warnings do not concern results
        return judged(instance)
