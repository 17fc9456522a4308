"""PyTorch's modes: autocast, gradient checkpointing, torch.compile."""

from __future__ import annotations

import warnings

import torch
from torch.utils.checkpoint import checkpoint

from conformance.cases.linear_case import LinearCase
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.judgement.judge import judge, worst
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Subject


@clause(
    "LIN-AMP",
    "LAY-AMP",
    sentence="""Under autocast the layer behaves like the same formula written with F.linear; backward runs outside
    the autocast region.""",
    cases=SMALL.narrowed(autocast=("bfloat16",), training=(True,)),
    dtypes=("float32",),
    weight=0.5,
)
def test_autocast(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    with torch.autocast(subject.device.partition(":")[0], dtype=operands.computed_in):
        y = instance.forward()
    instance.backward(y)
    oracle = oracle_for(subject, operands)
    if not subject.has_base:  # the output dtype of the bare update is an argument
        return judge_gradients(instance, oracle)
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle))


@clause(
    "LIN-CKPT",
    "LAY-CKPT",
    sentence="Under gradient checkpointing, y and the gradients are the same.",
    cases=SMALL.narrowed(training=(True,)),
    weight=0.25,
)
def test_checkpointed(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    plain = instance.call
    instance.call = lambda x: checkpoint(plain, x, use_reentrant=False)
    y = instance.forward()
    instance.backward(y)
    oracle = oracle_for(subject, operands)
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle))


@clause(
    "LIN-COMPILE",
    "LAY-COMPILE",
    sentence="Under torch.compile, y and the gradients are the same.",
    cases=SMALL.narrowed(
        training=(True,),
        m=(3, 17),
        k=(17, 33),
        n=(5, 17),
        r=(3,),
        scale=(2.0, 4.0),
        values=("integers", "normal"),
        sizes=("free", "k=n"),
    ),
    dtypes=("float32", "bfloat16"),  # the traced graph depends on the dtype only by its being a 16-bit one
    weight=0.05,
)
def test_compiled(subject: Subject, case: LinearCase) -> float | None:
    torch._dynamo.reset()
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    # aot_eager captures and partitions the graphs as every backend does, without generating code
    instance.call = torch.compile(instance.call, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's warnings do not concern results
        y = instance.forward()
        instance.backward(y)
    oracle = oracle_for(subject, operands)
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle))
