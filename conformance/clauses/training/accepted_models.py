"""The models that LoraTraining accepts: those with LoRA layers, in any of the usual forms, and those without."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from conformance.clauses.hybrid.module_tree import Branch, converted, linear, tree
from conformance.clauses.training.closed_form_network import ONE, STEPS, Problem, StepCase
from conformance.clauses.training.session import Session
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import SHOULD, clause
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

WITHOUT = STEPS.narrowed(how=("plain", "names that contain lora"))


class WithoutDropout(Problem):
    """The same problem with adapters that have no child called lora_dropout."""

    def net(self, **options: Any) -> Any:
        return super().net(dropout=False, **options)


@clause(
    "TRN-LORA-NO-DROPOUT",
    sentence="A layer with lora_A and lora_B but without lora_dropout is a LoRA layer too.",
    cases=STEPS,
    dtypes=ONE,
    weight=0.5,
)
def test_adapter_without_dropout(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case, WithoutDropout(case, subject.device)).configure()
    return worst(judge(session.call()[0], session.problem.loss()), session.judge_gradients())


def without_adapters(case: StepCase) -> tuple[str, nn.Module, list[str]]:
    """A model of two linear layers and no adapter: its description, the model, and the names of the layers."""
    names = ["fc1", "fc2"] if case.how == "plain" else ["explorator", "lora_model.fc"]
    model = tree({name: linear() for name in names})
    return f"LoraTraining of a model with the layers {', '.join(names)}", model, names


@clause(
    "TRN-LORA-ABSENT",
    sentence="""A model without any LoRA layer is accepted: every linear layer except the first is replaced, even if its
    name contains "lora".""",
    cases=WITHOUT,
    dtypes=ONE,
    why="Concrete ML's own tests train such models.",
)
def test_model_without_adapters(subject: Subject, case: StepCase) -> float | None:
    what, model, names = without_adapters(case)
    with calling_quietly(what):
        subject.thing(model)
    require(converted(model) == names[1:], f"{what} replaced {converted(model)}: expected {names[1:]}")
    return None


@clause(
    "TRN-LORA-WARNING",
    sentence="""For a model without any LoRA layer there is a UserWarning, even if names of its layers contain
    "lora".""",
    cases=WITHOUT,
    level=SHOULD,
    dtypes=ONE,
    weight=0.3,
)
def test_warning_without_adapters(subject: Subject, case: StepCase) -> float | None:
    what, model, _ = without_adapters(case)
    with warnings.catch_warnings(record=True) as caught, calling(what):
        warnings.simplefilter("always")
        subject.thing(model)
    require(
        any(issubclass(warning.category, UserWarning) for warning in caught), f"{what} did not warn: expected a warning"
    )
    return None


@clause(
    "TRN-LORA-PEFT",
    sentence="""Adapters held in dictionaries by adapter name, as PEFT's lora_A.default, are recognised and not
    replaced.""",
    cases=STEPS,
    dtypes=ONE,
    weight=0.3,
)
def test_named_adapters(subject: Subject, case: StepCase) -> float | None:
    del case
    path = "base_model.layers.0.q_proj"
    parts = {f"{path}.lora_{kind}.default": linear() for kind in "AB"}
    dropout: dict[str, nn.Module] = {f"{path}.lora_dropout.default": nn.Identity()}
    model = tree({"embed": linear(), f"{path}.base_layer": linear(), **dropout, **parts})
    with calling_quietly("LoraTraining(model)"):
        subject.thing(model)
    now = converted(model)
    require(now == [f"{path}.base_layer"], f"LoraTraining replaced {now}: expected {path}.base_layer alone")
    return None


@clause(
    "TRN-INIT",
    sentence="""LoraTraining(model) replaces, in the model itself, every linear layer outside adapters except the
    first in registration order.""",
    cases=STEPS,
    dtypes=ONE,
    weight=0.3,
)
def test_constructor_replaces(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case)
    now, expected = converted(session.net), ["inner.base_layer", "outer.base_layer"]
    require(now == expected, f"LoraTraining(model) replaced {now}: expected {expected}, and `first` skipped")
    require(not isinstance(session.net, Branch), "the model was exchanged")
    return None
