"""The operands of a batch that calls leave as they are."""

from __future__ import annotations

import torch

from conformance.clauses.batched.batch import TRAINABLE, Batch, bound
from conformance.clauses.batched.case import SMALL, BatchedCase
from conformance.specification.clause import clause
from conformance.target.kept_tensors import require_kept_by_calls
from conformance.target.subject import Subject


@clause(
    "BAT-KEEP-CALLS",
    sentence="""No call changes the dtype, shape, device, requires_grad or values of W, b, A, B or the metadata: not
    with or without a backward pass, nor if x has another dtype or autocast is on, whether the call succeeds or
    raises.""",
    why="Adapters are shared by all requests of a server: one that is cast for one batch is rounded for all others.",
    cases=SMALL.narrowed(bias=(True, False)),
    level="SHOULD",
    weight=0.25,
)
def test_calls_keep_operands(subject: Subject, case: BatchedCase) -> None:
    instance = bound(subject, Batch(subject, case))
    learns = not subject.lacks("batched_gradients")
    instance.require_grad(TRAINABLE if learns else ())
    x = instance.tensors.pop("x")
    held = {**instance.tensors, **instance.metadata}

    def call(given: torch.Tensor) -> torch.Tensor:
        instance.tensors["x"] = given
        return instance.forward()

    require_kept_by_calls(subject, lambda: held, call, x, case.seed, learns=learns)
