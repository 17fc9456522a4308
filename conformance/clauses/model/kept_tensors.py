"""The tensors of an adapted model that calls leave as they are."""

from __future__ import annotations

import torch

from conformance.clauses.model.apply_to_model import MODELS, ModelCase
from conformance.clauses.model.target_calls import apply
from conformance.specification.clause import clause
from conformance.target.kept_tensors import require_kept_by_calls, stored_by
from conformance.target.subject import Subject


@clause(
    "MOD-KEEP-CALLS",
    sentence="""No call of an adapted model changes the dtype, shape, device, requires_grad or values of a parameter or
    buffer: not in train or eval mode, with or without a backward pass, nor if autocast is on.""",
    why="A tensor that is cast to the dtype of one call, or of autocast, stays rounded, and is saved in that dtype.",
    cases=MODELS.narrowed(frozen=(False,)),
    dtypes=("float32", "bfloat16"),
    level="SHOULD",
    weight=0.25,
)
def test_calls_keep_the_model(subject: Subject, case: ModelCase) -> None:
    model = case.toy(subject).to(getattr(torch, case.dtype))
    apply(subject, model, **case.options)
    tokens = torch.tensor([[1, 2, 3]], device=subject.device)
    require_kept_by_calls(subject, lambda: stored_by(model), model, tokens, case.seed, module=model)
