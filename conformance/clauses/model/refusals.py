"""Arguments that `patch_linear_module` refuses, and the unchanged layer after a refusal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from conformance.cases.case import Case, Space
from conformance.clauses.model.target_calls import LAYER, PatchCase, linear, patch_case
from conformance.judgement.outcomes import Inconclusive, require
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.expected_errors import quiet, refuses
from conformance.target.subject import Subject

USED = ("dim", "alpha", "dropout")  # arguments that a target may check as late as in the first training step
ERRORS = (ValueError, TypeError, NotImplementedError, AssertionError)  # raised on purpose, not by accident
NOT_LINEAR: dict[str, Any] = {
    "Embedding": lambda: nn.Embedding(4, 4),
    "Conv1d": lambda: nn.Conv1d(4, 4, 1),
    "Bilinear": lambda: nn.Bilinear(4, 4, 4),
    "LayerNorm": lambda: nn.LayerNorm(4),
    "Identity": nn.Identity,
    "Sequential": lambda: nn.Sequential(nn.Linear(4, 4)),
}


@dataclass(frozen=True)
class BadArgument(Case):
    """A bad argument of patch_linear_module, as an index into the clause's values."""

    bad: int = 0


@clause(
    "MOD-TWICE",
    sentence="""Patching a layer that is already patched is an error, with either value of use_triton, and leaves its
    lora_A in place.""",
    cases=LAYER,
    dtypes=("float32",),
    weight=0.5,
)
def test_twice(subject: Subject, case: PatchCase) -> None:
    layer = patch_case(subject, case)
    old = adapter_of(layer, "lora_A")
    refuses(
        "patch_linear_module of a layer that is patched already",
        lambda: subject.target.patch_linear_module(layer, dim=case.r, use_triton=case.seed % 2 == 0),
        types=ERRORS,
    )
    require(adapter_of(layer, "lora_A") is old, "the refused second patch replaced lora_A of the first")


@clause(
    "MOD-NOT-LINEAR",
    sentence="Patching a module that is not an nn.Linear is an error.",
    cases=Space(PatchCase, how=tuple(NOT_LINEAR)),
    feature="linear_only",
    dtypes=("float32",),
    weight=0.5,
)
def test_not_linear(subject: Subject, case: PatchCase) -> None:
    module = NOT_LINEAR[case.how]().to(subject.device)
    refuses(f"patch_linear_module({case.how})", lambda: subject.target.patch_linear_module(module), types=ERRORS)


def _refused_when_used(subject: Subject, base: nn.Linear, key: str, value: Any) -> None:
    """Require an error of any type by the first training step, or for alpha a result that is not finite."""
    what = f"patch_linear_module(layer, {key}={value!r})"
    try:
        with quiet():
            y = subject.target.patch_linear_module(base, **{key: value}).train()(
                torch.ones(2, 4, device=subject.device)
            )
            y.sum().backward()
    except Exception:  # noqa: BLE001  (by this convention an error of any type will do)
        return
    visible = key == "alpha" and not bool(y.isfinite().all())
    require(visible, f"{what} gives a layer that trains: expected an error when it is used")


def _bad_values(
    key: str, values: tuple[Any, ...], sentence: str, clause_id: str, level: str = "MUST", feature: str = ""
) -> Any:
    """A clause: patch_linear_module refuses each of these values of one argument."""

    def refused(subject: Subject, case: BadArgument) -> None:
        value = values[case.bad]
        base = linear(subject, PatchCase(seed=case.seed, k=4, n=3))
        if key in USED and subject.follows("argument_checks", "when used"):
            _refused_when_used(subject, base, key, value)
            return
        refuses(
            f"patch_linear_module(layer, {key}={value!r})",
            lambda: subject.target.patch_linear_module(base, **{key: value}),
            types=(*ERRORS, KeyError) if key == "lora_dtype" else ERRORS,  # a name that a table lacks
        )

    refused.__name__ = f"test_{clause_id.lower().replace('-', '_')}"
    return clause(
        clause_id,
        sentence=sentence,
        cases=Space(BadArgument, bad=tuple(range(len(values)))),
        level=level,
        dtypes=("float32",),
        feature=feature,
        weight=0.5,
    )(refused)


test_bad_dim = _bad_values(
    "dim",
    (0, -1, -8),
    """A dim below 1 is an error. By the convention `argument_checks: when used` it may come with the first training
    step.""",
    "MOD-DIM",
)
test_bad_dim_type = _bad_values(
    "dim",
    (True, 8.0, "8", None),
    "A dim that is not an int is an error; True does not count as an int.",
    "MOD-DIM-TYPE",
    level="SHOULD",
)
test_bad_alpha = _bad_values(
    "alpha",
    (math.nan, math.inf, "32", None),
    """An alpha that is not a finite number is an error. By the convention `argument_checks: when used` the output may
    show it, which is then not finite.""",
    "MOD-ALPHA",
    level="SHOULD",
)
test_bad_dropout = _bad_values(
    "dropout",
    (-0.1, 1.5, math.nan, 100),
    """A dropout outside [0, 1] is an error as soon as the layer is patched. By the convention `argument_checks: when
    used` it is an error in the first training step.""",
    "MOD-DROPOUT",
    feature="dropout",
)
test_bad_position = _bad_values(
    "dropout_position",
    ("middle", "", "Post", None),
    'A dropout_position other than "pre" or "post" is an error.',
    "MOD-POSITION",
)
test_bad_init_name = _bad_values(
    "lora_A_init_method",
    ("gaussian", "", "xavier_normal_", "zeros"),
    "An unknown name of an initialisation method is an error.",
    "MOD-INIT-UNKNOWN",
    feature="initialisation",
)
test_bad_dtype_name = _bad_values(
    "lora_dtype",
    ("float17", "torch.bf16x", "Linear", ""),
    "A lora_dtype string that does not name a dtype is an error.",
    "MOD-DTYPE-UNKNOWN",
    level="SHOULD",
    feature="adapter_dtype",
)
REFUSED: dict[str, dict[str, Any]] = {
    "dim": {"dim": 0},
    "dropout": {"dropout": 1.5},
    "position": {"dropout_position": "middle"},
    "method": {"lora_A_init_method": "gaussian"},
}


@clause(
    "MOD-REFUSED-INTACT",
    sentence="""A layer whose patching is refused keeps its class, parameter names, values and requires_grad, and gets
    no adapter.""",
    cases=LAYER.narrowed(how=tuple(REFUSED)),
    level="SHOULD",
    dtypes=("float32",),
)
def test_refused_intact(subject: Subject, case: PatchCase) -> None:
    base = linear(subject, case)
    kind, flags = type(base), {name: p.requires_grad for name, p in base.named_parameters()}
    values = {name: p.detach().clone() for name, p in base.named_parameters()}
    what = ", ".join(f"{key}={value!r}" for key, value in REFUSED[case.how].items())
    try:
        with quiet():
            subject.target.patch_linear_module(base, **REFUSED[case.how])
    except Exception:  # noqa: BLE001  (other clauses judge its type)
        pass
    else:
        raise Inconclusive(f"{what} is not refused, which another clause judges")
    after = {name: p.requires_grad for name, p in base.named_parameters()}
    require(type(base) is kind, f"{what} was refused but the layer became a {type(base).__name__}")
    require(after == flags, f"{what} was refused but requires_grad went from {flags} to {after}")
    require(not hasattr(base, "lora_A"), f"{what} was refused but the layer has lora_A")
    for name, old in values.items():
        require(torch.equal(getattr(base, name), old), f"{what} was refused but the values of {name} changed")
