"""Group `linear`: the functions `lora_linear` and `LoRATritonFunction.apply`."""

from __future__ import annotations

from conformance import requirements
from conformance.clause import clause
from conformance.judge import Refused, Violation
from conformance.operands import LinearCase
from conformance.requirements.base import SMALL
from conformance.subject import Subject

globals().update(requirements.declare("LIN", "linear"))


@clause(
    "LIN-SHAPES",
    "Operands whose features or rank do not chain are refused.",
    group="linear",
    cases=SMALL.narrowed(values=("normal",), k=(17, 33), n=(16, 35), r=(3, 4)),
    dtypes=("float32",),
)
def test_operands_that_do_not_chain(subject: Subject, case: LinearCase) -> float | None:
    broken = ("lora_A", "lora_B", "x")[case.seed % 3]
    operands = subject.operands(case)
    values = operands.values[broken]
    operands.values[broken] = values[..., :-1].copy()
    try:
        y = subject.build(operands).forward()
    except (Violation, Refused):
        return None
    shapes = ", ".join(f"{name} {list(operands.values[name].shape)}" for name in ("x", "lora_A", "lora_B"))
    raise Violation(f"{subject.name} returned {list(y.shape)} from {shapes}: expected an error")


@clause(
    "LIN-DROP-RANGE",
    "A dropout probability outside [0, 1] is an error.",
    group="linear",
    cases=SMALL.narrowed(dropout=(-0.1, 1.5, float("nan")), training=(True,)),
    subjects=("lora_linear",),
    dtypes=("float32",),
    weight=0.5,
)
def test_dropout_out_of_range(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    try:
        subject.build(operands).forward()
    except (Violation, Refused):
        return None
    raise Violation(f"lora_linear(…, dropout={case.dropout}, training=True) returned: expected a ValueError")
