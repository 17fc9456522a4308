"""Conv1D of transformers, whose weight is [in, out]: it gets an adapter or is named, and computes the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.clauses.hybrid.module_tree import conv1d
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.clauses.model.refusals import ERRORS
from conformance.clauses.model.target_calls import LAYER, PATCH, PatchCase, bound, warned
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics.formats import format_of, numbers
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly, quiet
from conformance.target.subject import TRAINABLE, Subject

CHOICES: dict[str, dict[str, Any]] = {
    "a pattern": {"target_modules": ["c_attn", "head"]},
    "match_all_linear": {"match_all_linear": True},
    "exclude_modules": {"exclude_modules": ["head"]},
}


@clause(
    "MOD-CONV1D",
    sentence="""A Conv1D of transformers that a pattern matches, or that match_all_linear or exclude_modules includes,
    gets an adapter, or a warning or an error names it.""",
    why="All layers of a block of GPT-2 are Conv1D: without them almost nothing is trained.",
    cases=LAYER.narrowed(how=tuple(CHOICES)),
    level="SHOULD",
    dtypes=("float32",),
    library="transformers",
    weight=0.5,
)
def test_chosen_conv1d(subject: Subject, case: PatchCase) -> None:
    model = nn.ModuleDict({"c_attn": conv1d(case.n, case.k), "head": nn.Linear(case.k, case.n)}).to(subject.device)
    try:
        with quiet():
            _, said = warned(subject, model, dim=case.r, **CHOICES[case.how])
    except Exception as error:  # noqa: BLE001  (an error that names the layer is not silent)
        said = f"{error} {error.__cause__}"
    has = hasattr(model["c_attn"], "lora_A")
    require(has or "c_attn" in said, f"{case.how} chooses c_attn, a Conv1D: it got no adapter, and nothing named it")


@clause(
    "MOD-CONV1D-STEP",
    sentence="""A Conv1D of transformers that gets an adapter keeps its weight [in, out], and gives
    y = x W + b + s·(x Aᵀ) Bᵀ and its gradients, for a square weight too; merged, it gives the same y.""",
    why="With a square weight a transposed product has the right shape.",
    cases=PATCH.narrowed(k=(16, 5, 3), n=(2, 5, 33), r=(2, 3), bias=(True,), training=(True,)),
    library="transformers",
    weight=0.5,
)
def test_adapted_conv1d(subject: Subject, case: PatchCase) -> float | None:
    operands = subject.operands(case)
    layer: Any = conv1d(case.n, case.k).to(subject.device, dtype=operands.dtype)
    before = layer.weight
    with torch.no_grad():
        layer.weight.copy_(operands.placed["weight"].tensor.t())
        layer.bias.copy_(operands.placed["bias"].tensor)
    try:
        with quiet():
            options = {"dim": case.r, "alpha": operands.scale * case.r, "use_triton": case.triton}
            layer = subject.target.patch_linear_module(layer, **options)
    except ERRORS:
        return None  # a target need not adapt it
    require(layer.weight is before, "the weight of an adapted Conv1D is another Parameter than before")
    instance = bound(layer, operands)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    instance.backward(y)
    oracle = oracle_for(subject, operands)
    ratios = [judge(y, oracle.y), judge_gradients(instance, oracle)]
    if hasattr(layer, "merge"):
        with calling("merge() of an adapted Conv1D"):
            layer.merge()
        with torch.no_grad(), calling_quietly("the forward of a merged Conv1D"):
            ratios.append(judge(layer(instance.tensors["x"]), oracle.y))
    return worst(*ratios)


@clause(
    "MOD-CONV1D-UNMERGE",
    sentence="""Merging and unmerging an adapted Conv1D restores its weight within 2u·(|W| + |s·B A|), and with DoRA
    within 2u·|W| + 4u·|W + s·B A|, for a square weight too.""",
    why="A factor for each output feature belongs to the other axis of a weight [in, out].",
    cases=PATCH.narrowed(k=(16, 5, 3), n=(2, 5, 33), r=(2, 3), how=("LoRA", "DoRA"), sizes=("k=n", "free")),
    library="transformers",
    weight=0.5,
)
def test_unmerged_conv1d(subject: Subject, case: PatchCase) -> float | None:
    operands, dora = subject.operands(case), case.how == "DoRA"
    layer: Any = conv1d(case.n, case.k).to(subject.device, dtype=operands.dtype)
    with torch.no_grad():
        layer.weight.copy_(operands.placed["weight"].tensor.t())
    try:
        with quiet():
            options = {"dim": case.r, "alpha": operands.scale * case.r} | ({"use_dora": True} if dora else {})
            layer = subject.target.patch_linear_module(layer, **options)
    except ERRORS:
        return None  # a target need not adapt it
    if not hasattr(layer, "merge"):
        return None
    bound(layer, operands)
    before = numbers(layer.weight)
    change = operands.scale * (operands.values["lora_B"] @ operands.values["lora_A"]).T
    if dora and getattr(layer, "lora_magnitude", None) is not None:
        with torch.no_grad():
            layer.lora_magnitude.mul_(1.5)
    with calling("merge() and unmerge() of an adapted Conv1D"):
        layer.merge()
        layer.unmerge()
    unit = format_of(operands.dtype).unit
    allowed = unit * (2 * np.abs(before) + (4 * np.abs(before + change) if dora else 2 * np.abs(change)))
    restored = Expected("the unmerged weight", before, allowed, torch.float64)
    return judge(torch.from_numpy(numbers(layer.weight)), restored)
