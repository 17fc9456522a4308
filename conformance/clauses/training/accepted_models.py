"""The models that LoraTraining accepts: those with LoRA layers, in any of the usual forms."""

from __future__ import annotations

from typing import Any

from torch import nn

from conformance.clauses.hybrid.module_tree import Branch, converted, linear, tree
from conformance.clauses.training.closed_form_network import ONE, STEPS, Problem, StepCase
from conformance.clauses.training.session import Session
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import SHOULD, clause
from conformance.target.expected_errors import calling_quietly, refuses
from conformance.target.subject import Subject


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


@clause(
    "TRN-LORA-REQUIRED",
    sentence="""A model without any LoRA layer is refused with a ValueError, even if names of its layers contain
    "lora".""",
    cases=STEPS.narrowed(how=("plain", "names that contain lora")),
    level=SHOULD,
    dtypes=ONE,
    weight=0.3,
)
def test_model_without_adapters(subject: Subject, case: StepCase) -> float | None:
    names = ("fc1", "fc2") if case.how == "plain" else ("explorator", "lora_model.fc")
    model = tree({name: linear() for name in names})
    refuses(f"LoraTraining of a model with the layers {', '.join(names)}", lambda: subject.thing(model))
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
