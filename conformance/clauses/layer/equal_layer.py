"""Judge a layer that should compute the same as another: a copy, or a loaded or converted layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.judgement.judge import judge, worst
from conformance.target.adapter_tensors import adapter_of
from conformance.target.subject import TRAINABLE, Instance, Subject


def same_results(subject: Subject, instance: Instance, other: Any, what: str) -> float | None:
    """Judge the output and gradients of a layer that should compute the same as the instance."""
    adapters = {name: adapter_of(other, name) for name in ("lora_A", "lora_B")}
    tensors = {"x": instance.operands.placed["x"].tensor.detach().clone().requires_grad_(), **adapters}
    twin = Instance(other, tensors, instance.operands, module=other)
    twin.require_grad(TRAINABLE)
    y = twin.forward()
    twin.backward(y)
    oracle = oracle_for(subject, instance.operands)
    return worst(judge(y, dataclasses.replace(oracle.y, name=f"y of {what}")), judge_gradients(twin, oracle))
