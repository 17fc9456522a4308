"""The tensors of a layer on a packed base, bias and adapter included, that calls leave as they are."""

from __future__ import annotations

import torch

from conformance.clauses.quantised.case import DTYPES, SMALL, PackedCase
from conformance.clauses.quantised.packed_operands import adapted, operands_of
from conformance.clauses.quantised.storage_state import LAYERS, own_tensors
from conformance.specification.clause import clause
from conformance.target.kept_tensors import require_kept_by_calls, stored_by
from conformance.target.subject import Subject


@clause(
    "QNT-KEEP-CALLS",
    sentence="""No call changes the dtype, shape, device, requires_grad or values of a parameter or buffer, bias and
    adapter included: not in train or eval mode, with or without a backward pass, nor if x has another dtype or
    autocast is on, whether the call succeeds or raises.""",
    why="""A bias that is cast to the dtype of one x stays rounded, is saved in that dtype, and no longer fits the
    state_dict of its model.""",
    cases=SMALL.narrowed(bias=(True, False)),
    dtypes=DTYPES,
    subjects=LAYERS,
    level="SHOULD",
    weight=0.34,
)
def test_calls_keep_tensors(subject: Subject, case: PackedCase) -> None:
    instance = adapted(subject, operands_of(subject, case))
    layer = instance.module
    repacked = subject.follows("packed_storage", "repacked")

    def tensors() -> dict[str, torch.Tensor]:
        storage = own_tensors(layer) if repacked else {}
        return {name: tensor for name, tensor in stored_by(layer).items() if name not in storage}

    require_kept_by_calls(subject, tensors, instance.call, instance.tensors["x"], case.seed, module=layer)
