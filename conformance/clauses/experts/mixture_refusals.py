"""Modules and options that cannot be adapted: each is refused before anything changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conformance.clauses.experts.mixture import Mixture, patched
from conformance.clauses.experts.mixture_case import FEW, MixtureCase
from conformance.clauses.experts.mixture_results import MODULES
from conformance.clauses.experts.small_experts import GatedExperts
from conformance.judgement.outcomes import Refused, Violation, require
from conformance.specification.clause import clause
from conformance.target.subject import Subject


class DenseExperts(GatedExperts):
    """Experts that get no indices, as Llama 4's: every expert has its own part of the tokens."""

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        return hidden_states


def _without_orientation(module: Any) -> None:
    module.is_transposed = None


def _quantised(module: Any) -> None:
    module.down_proj = nn.Parameter(torch.zeros(module.down_proj.shape, dtype=torch.int8), requires_grad=False)


def _without_indices(module: Any) -> None:
    module.__class__ = DenseExperts


def _without_a_projection(module: Any) -> None:
    del module.down_proj


UNFIT: dict[str, Callable[[Any], None]] = {
    "does not say how its weights are stored": _without_orientation,
    "has a forward without indices": _without_indices,
    "has quantised weights": _quantised,
    "has no down_proj": _without_a_projection,
}
OPTIONS: dict[str, Any] = {
    "dim = 0": {"dim": 0},
    "lora_A_init_method = 'zeros'": {"lora_A_init_method": "zeros"},
    "dropout = 1.5": {"dropout": 1.5},
    "dropout_position = 'middle'": {"dropout": 0.5, "dropout_position": "middle"},
    "projections = ['no_proj']": {"projections": ["no_proj"]},
}


def refused(subject: Subject, mixture: Mixture, what: str, **options: Any) -> None:
    """Require that adapting raises, and that the module is as before."""
    module: Any = mixture.experts
    kind, names = type(module), dict(module.named_parameters())
    flags = {name: p.requires_grad for name, p in names.items()}
    values = {name: p.detach().clone() for name, p in names.items()}
    try:
        patched(subject, mixture, **options)
    except (Refused, Violation) as outcome:
        if isinstance(outcome, Violation) and outcome.__cause__ is None:
            raise
    else:
        raise Violation(f"patch_moe_module returned although {what}: expected an error")
    now = dict(module.named_parameters())
    require(type(module) is kind, f"the module is a {type(module).__name__} after it was refused because {what}")
    require(list(now) == list(names), f"the module has other parameters after it was refused because {what}")
    for name, parameter in now.items():
        require(parameter.requires_grad == flags[name], f"{name} was frozen although {what} and so it was refused")
        require(torch.equal(parameter, values[name]), f"{name} has changed although {what} and so it was refused")


@clause(
    "EXP-MOD-UNFIT",
    sentence="""A module whose forward takes no indices, that does not say how its weights are stored, that lacks a
    projection, or whose weights are quantised is refused with an error, and is unchanged.""",
    cases=FEW.narrowed(k=(4,), n=(4,)),
    dtypes=("float32",),
    subjects=MODULES,
)
def test_modules_that_cannot_be_adapted(subject: Subject, case: MixtureCase) -> float | None:
    what = list(UNFIT)[case.seed % len(UNFIT)]
    mixture = Mixture(case, subject.device)
    UNFIT[what](mixture.experts)
    refused(subject, mixture, f"the module {what}")
    return None


@clause(
    "EXP-MOD-OPTIONS",
    sentence="Options out of range are refused with an error, and the module is unchanged.",
    cases=FEW.narrowed(k=(4,), n=(4,)),
    dtypes=("float32",),
    subjects=MODULES,
    weight=1.25,
)
def test_options_of_experts_out_of_range(subject: Subject, case: MixtureCase) -> float | None:
    what = list(OPTIONS)[case.seed % len(OPTIONS)]
    refused(subject, Mixture(case, subject.device), what, **OPTIONS[what])
    return None


@clause(
    "EXP-MOD-TWICE",
    sentence="Adapting a module a second time is refused with an error: its first adapter stays as it is.",
    cases=FEW.narrowed(k=(4,), n=(4,)),
    dtypes=("float32",),
    subjects=MODULES,
    weight=0.34,
)
def test_experts_adapted_twice(subject: Subject, case: MixtureCase) -> float | None:
    mixture = Mixture(case, subject.device)
    patched(subject, mixture)
    refused(subject, mixture, "the module already has adapters")
    return None
