"""The layer that saves memory takes what the plain one takes."""

from __future__ import annotations

from conformance.cases.linear_case import LinearCase
from conformance.judgement.judge import judge, require, worst
from conformance.requirements.backward import SUBSETS
from conformance.requirements.base import LEADING, judge_gradients, oracle_for, partnered
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Subject


@clause(
    "LAY-MEMORY-ANY",
    """With use_memory_efficient_lora x may have any leading dimensions, the adapter another dtype, and any subset of
    operands require grad.""",
    group="layer",
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
