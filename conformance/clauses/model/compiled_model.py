"""A model that torch.compile has wrapped, as a whole or in part: its modules keep their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from conformance.cases.case import Case, Space
from conformance.clauses.model.small_models import adapted, model_named
from conformance.clauses.model.target_calls import apply_config, in_its_rule, make_config, shown
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.subject import Subject

NAMES = ("blocks.0.fc", "blocks.1.fc", "head.fc")


@dataclass(frozen=True)
class CompiledCase(Case):
    """What torch.compile has wrapped: `the model`, or `a block` of it."""

    wrapped: str = "the model"


def compiled(model: nn.Module, wrapped: str) -> Any:
    """The model after torch.compile of all of it, or of the module `blocks.1`; nothing is compiled before a call."""
    if wrapped == "the model":
        return torch.compile(model, backend="eager")
    blocks: Any = model.get_submodule("blocks")
    blocks._modules["1"] = torch.compile(blocks._modules["1"], backend="eager")
    return model


@clause(
    "MOD-COMPILED",
    sentence="""Where torch.compile has wrapped a model or a part of it, a pattern matches the names that the modules
    have in the model itself, without `_orig_mod`.""",
    why="A config that fits a model would choose other layers, or none, once the model is compiled.",
    cases=Space(CompiledCase, wrapped=("the model", "a block")),
    level="SHOULD",  # names in torch have the wrapper's
    dtypes=(),
    weight=0.4,
)
def test_compiled_model(subject: Subject, case: CompiledCase) -> None:
    model = model_named(NAMES)
    options = in_its_rule(subject, model, {"target_modules": [NAMES[1]]})
    config, text = make_config(subject, **options), shown((), options)[2:]
    model = compiled(model, case.wrapped)
    apply_config(subject, model, config, f"{text}, after torch.compile of {case.wrapped}")
    found = [name.replace("_orig_mod.", "") for name in adapted(model)]
    where = f"{text} on a model of which {case.wrapped.removesuffix(' of it')} is wrapped by torch.compile"
    require(found == [NAMES[1]], f"{where}: {found or 'nothing'} has an adapter, expected {[NAMES[1]]}")
