"""`use_memory_efficient_lora` changes no result, and takes the same operands as the plain layer."""

from __future__ import annotations

import dataclasses

from conformance.cases.linear_case import LinearCase
from conformance.clauses.linear_and_layer.backward import SUBSETS
from conformance.clauses.linear_and_layer.case_spaces import LEADING, SMALL, partnered
from conformance.clauses.linear_and_layer.dropout import judge_relation, started
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Subject


@clause(
    "LAY-MEMORY-ANY",
    sentence="""With use_memory_efficient_lora, x may have any leading dimensions, the adapter may have another
    dtype, and any subset of x, A and B may require grad.""",
    feature="memory_efficient",
    cases=LEADING,
    weight=0.5,
)
def test_memory_efficient_anyhow(subject: Subject, case: LinearCase) -> float | None:
    needs = (TRAINABLE, *SUBSETS)[case.seed % 7]
    operands = subject.operands(partnered(case) if case.seed % 2 else case)
    instance = subject.build(operands, use_memory_efficient_lora=True)
    instance.require_grad(needs)
    y = instance.forward()
    instance.backward(y)
    for name in set(TRAINABLE) - set(needs):
        require(instance.gradient(name) is None, f"{name} got a gradient although it does not require one")
    oracle = oracle_for(subject, operands)
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle, needs))


@clause(
    "LAY-MEMORY-EFFICIENT",
    sentence="""use_memory_efficient_lora changes neither y nor any gradient, and backward still uses the forward's
    dropout mask.""",
    feature="memory_efficient",
    cases=SMALL.narrowed(dropout=(0.0, 0.5, 0.0, 0.25), position=("post", "pre")),
)
def test_memory_efficient(subject: Subject, case: LinearCase) -> float | None:
    if case.dropout and case.dtype in ("float64", "float32"):  # in 16 bits the budgets are too wide to decide
        operands = subject.operands(dataclasses.replace(case, values="normal", training=True))
        instance = started(subject, operands, use_memory_efficient_lora=True)
        return judge_relation(instance, oracle_for(subject, operands))
    case = dataclasses.replace(case, dropout=0.0)
    operands = subject.operands(case)
    instance = subject.build(operands, use_memory_efficient_lora=True)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    instance.backward(y)
    oracle = oracle_for(subject, operands)
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle))
