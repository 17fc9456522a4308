"""The operands of a function and the tensors of a layer that calls leave as they are."""

from __future__ import annotations

import torch
from torch import nn

from conformance.cases.linear_case import LinearCase
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.specification.clause import clause
from conformance.target.kept_tensors import require_kept_by_calls, stored_by
from conformance.target.subject import TRAINABLE, Subject


@clause(
    "LIN-KEEP-CALLS",
    "LAY-KEEP-CALLS",
    sentence="""No call changes the dtype, shape, device, requires_grad or values of W, b, A or B, or of another
    parameter or buffer of the layer: not in train or eval mode, with or without a backward pass, nor if x has another
    dtype or autocast is on, whether the call succeeds or raises.""",
    why="A tensor that is cast to the dtype of one x, or of autocast, stays rounded, and is saved in that dtype.",
    cases=SMALL.narrowed(bias=(True, False)),
    level="SHOULD",
    weight=0.25,
)
def test_calls_keep_tensors(subject: Subject, case: LinearCase) -> None:
    instance = subject.build(subject.operands(case))
    instance.require_grad(TRAINABLE)
    module = instance.module if isinstance(instance.module, nn.Module) else None
    operands = {name: tensor for name, tensor in instance.tensors.items() if name != "x"}

    def tensors() -> dict[str, torch.Tensor]:
        return operands if module is None else stored_by(module)

    require_kept_by_calls(subject, tensors, instance.call, instance.tensors["x"], case.seed, module=module)
