"""The operands of a grouped layer and the tensors of adapted experts that calls leave as they are."""

from __future__ import annotations

import torch

from conformance.clauses.experts.case import SMALL, GroupedCase
from conformance.clauses.experts.forward import FUNCTIONS
from conformance.clauses.experts.grouped import TRAINABLE, Grouped, bound
from conformance.clauses.experts.mixture import Mixture, adapted
from conformance.clauses.experts.mixture_case import FEW, MixtureCase
from conformance.clauses.experts.mixture_results import COARSE, MODULES
from conformance.specification.clause import clause
from conformance.target.kept_tensors import require_kept_by_calls, stored_by
from conformance.target.subject import Subject


@clause(
    "EXP-KEEP-CALLS",
    sentence="""No call changes the dtype, shape, device, requires_grad or values of W, b, A, B, the indices or the
    offsets: not with or without a backward pass, nor if x has another dtype or autocast is on, whether the call
    succeeds or raises.""",
    why="An operand that is cast to the dtype of one x, or of autocast, stays rounded, and is saved in that dtype.",
    cases=SMALL.narrowed(bias=(True, False)),
    subjects=FUNCTIONS,
    level="SHOULD",
    weight=0.25,
)
def test_calls_keep_operands(subject: Subject, case: GroupedCase) -> None:
    grouped = Grouped(subject, case)
    instance = bound(subject, grouped)
    instance.require_grad(TRAINABLE)
    held = {**{n: t for n, t in instance.tensors.items() if n != "x"}, "the routing": grouped.routing}
    require_kept_by_calls(subject, lambda: held, instance.call, instance.tensors["x"], case.seed)


@clause(
    "EXP-MOD-KEEP-CALLS",
    sentence="""No call of an adapted module of experts changes the dtype, shape, device, requires_grad or values of a
    parameter or buffer: not in train or eval mode, with or without a backward pass, nor if the tokens have another
    dtype or autocast is on, whether the call succeeds or raises.""",
    why="A tensor that is cast to the dtype of one x, or of autocast, stays rounded, and is saved in that dtype.",
    cases=FEW,
    dtypes=COARSE,
    subjects=MODULES,
    level="SHOULD",
    weight=0.25,
)
def test_calls_keep_experts(subject: Subject, case: MixtureCase) -> None:
    instance = adapted(subject, Mixture(case, subject.device))
    module = instance.module

    def call(tokens: torch.Tensor) -> torch.Tensor:
        instance.x = tokens
        return instance.forward()

    require_kept_by_calls(subject, lambda: stored_by(module), call, instance.x, case.seed, module=module)
