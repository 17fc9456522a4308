"""The activation of `lora_mlp`: it is the one named, right for large arguments too; unknown names are refused."""

from __future__ import annotations

import numpy as np

from conformance.clauses.fused.block import Block, bound
from conformance.clauses.fused.case import FUSED, SMALL, FusedCase
from conformance.clauses.fused.forward import judged_all
from conformance.clauses.fused.oracle import Oracle
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject

TWINS = {"gelu": "gelu_tanh", "gelu_tanh": "gelu", "silu": "gelu", "relu2": "silu"}


@clause(
    "FUS-ACTIVATION",
    sentence="""lora_mlp uses the named activation and its derivative: silu, gelu (with erf), gelu_tanh (with tanh)
    and relu2 (the square of relu) never stand in for each other.""",
    why="gelu and gelu_tanh are so close that a confused one trains without notice.",
    cases=SMALL.narrowed(values=("normal",), activation=("gelu", "gelu_tanh", "silu", "relu2"), n=(16, 35)),
    subjects=("lora_mlp",),
    dtypes=("float64", "float32"),
)
def test_activation_is_the_one_named(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    oracle, twin = Oracle(block), TWINS[case.activation]
    expected = oracle.output("y")
    assert expected.budget is not None
    if not (np.abs(oracle.under(twin, "y").reshape(expected.value.shape) - expected.value) > expected.budget).any():
        raise Inconclusive(f"{twin} would pass as {case.activation}")
    return judged_all(subject, block)


@clause(
    "FUS-SATURATED",
    sentence="""Outputs and gradients are finite and right when the arguments of the activation are large, positive
    or negative.""",
    cases=FUSED.narrowed(
        m=(5, 9),
        k=(17, 33),
        n=(16, 35),
        o=(3, 17),
        r=(3, 4),
        bias=("none",),  # beside activations of 128, a bias of the last projection shows in no 16-bit output
        values=("normal",),
        special=("saturated",),
        training=(True,),
    ),
    subjects=("lora_mlp",),
)
def test_saturated_activation(subject: Subject, case: FusedCase) -> float | None:
    return judged_all(subject, Block(subject, case))


@clause(
    "FUS-ACTIVATION-NAME",
    sentence="An unknown activation name is refused with an error.",
    cases=SMALL.narrowed(activation=("swish2", "silugelu", "activation"), values=("normal",)),
    subjects=("lora_mlp",),
    dtypes=("float32",),
    weight=0.5,
)
def test_unknown_activation(subject: Subject, case: FusedCase) -> float | None:
    operands = Block(subject, case)
    instance = bound(subject, operands)
    try:
        with calling("the forward pass"):
            instance.call(instance.tensors["x"])
    except Refused:
        return None
    except Violation as violation:
        if violation.__cause__ is not None:  # the target raised; without a cause, it returned a malformed result
            return None
        raise
    raise Violation(f"lora_mlp(…, {case.activation!r}) returned: expected a ValueError")
