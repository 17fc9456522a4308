"""`lora_packed_linear`, the formula as a function of a packed weight, in every format that `PackedWeight` reads."""

from __future__ import annotations

from typing import Any

import torch

from conformance.clauses.quantised.case import DTYPES, STORED, StoredCase
from conformance.clauses.quantised.oracle import PackedOracle
from conformance.clauses.quantised.packed_operands import PackedOperands
from conformance.clauses.quantised.stored_fields import stored_weight
from conformance.clauses.quantised.stored_formats import packed_weight
from conformance.judgement.judge import judge, worst
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Instance, Subject


def bound(subject: Subject, case: StoredCase) -> Instance:
    """The function with a case's operands and a weight of stored fields."""
    operands = PackedOperands(case, subject.device)
    stored = stored_weight(case)
    operands.stored, operands.values["weight"] = stored, stored.numbers
    weight = packed_weight(subject, stored)
    tensors = {name: operands.placed[name].tensor for name in operands.placed if name not in ("g", "weight")}
    options: dict[str, Any] = {} if operands.compute is None else {"compute_dtype": operands.compute}
    adapter = (tensors["lora_A"], tensors["lora_B"], operands.scale)

    def call(x: torch.Tensor) -> Any:
        return subject.thing(x, weight, tensors.get("bias"), *adapter, **options)

    return Instance(call, tensors, operands)


@clause(
    "QNT-FN",
    sentence="""lora_packed_linear gives y = x Ŵᵀ + b + s·(x Aᵀ) Bᵀ and the gradients of x, lora_A and lora_B, in every
    format of stored fields and with a compute dtype.""",
    cases=STORED.narrowed(compute=("none", "float32", "bfloat16")),
    dtypes=DTYPES,
    subjects=("lora_packed_linear",),
    needs=("PackedWeight",),
)
def test_function(subject: Subject, case: StoredCase) -> float | None:
    instance = bound(subject, case)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    instance.backward(y)
    oracle = PackedOracle(instance.operands)
    return worst(judge(y, oracle.y), *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))
