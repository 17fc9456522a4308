"""Right layers of other conventions pass if they declare them; what they declare absent is refused or right."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reference
from conformance.cases.linear_case import LinearCase
from conformance.errors import TargetError
from conformance.judgement.outcomes import Violation
from conformance.judgement.result import ANY_DTYPE
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.check_case import check_case
from conformance.target.features import probed_position
from conformance.target.form_check import forms_of
from conformance.target.target import Target
from tests.baselines import conventions
from tests.baselines.conventions import declaring
from tests.baselines.layer import Layer
from tests.baselines.linear import Right
from tests.campaigns.variants.conventions import CONVENTIONS
from tests.test_features import Plain

FEW = dataclasses.replace(PROFILES["quick"], volume=3, shrinks=0)


def failures(thing: Any, clauses: tuple[str, ...]) -> list[str]:
    """What becomes of a target in these clauses, where that is no pass."""
    target, found = Target.of(thing, "mine"), []
    assert target.binding_errors() == []
    for clause in map(load_all().__getitem__, clauses):
        subjects = target.subjects(clause)
        found += [] if subjects else [f"{clause.id} is not claimed"]
        for subject, dtype in itertools.product(subjects, clause.dtypes or (ANY_DTYPE,)):
            result = Examination(clause, subject, dtype, FEW).run()
            if result.status != "pass":
                found.append(f"{clause.id} {dtype}: {result.case}\n{result.message}")
    return found


@pytest.mark.parametrize(("name", "seed"), [("LAY-FWD-MIXED", 11), ("LAY-BWD-MIXED", 6)])
@pytest.mark.parametrize("declared", ["input dtype", "supported"])
def test_an_adapter_that_is_rounded_to_the_dtype_of_x_passes_if_the_target_says_so(
    declared: str, name: str, seed: int
) -> None:
    target, clause = Target.of(declaring(conventions.RoundsTheAdapter, adapter_dtype=declared)), load_all()[name]
    subject = target.subjects(clause)[0]
    case = LinearCase(seed, "bfloat16", m=7, k=3, n=36, r=3, scale=2.0, values="normal", adapter="float32")
    with contextlib.nullcontext() if declared == "input dtype" else pytest.raises(Violation, match="error ÷ budget"):
        check_case(clause, subject, case)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_right_layer_of_a_convention_passes(name: str) -> None:
    assert failures(*CONVENTIONS[name]) == []


@pytest.mark.parametrize(
    ("kind", "feature", "clause"),
    [
        (conventions.HoldsALambda, "pickling", "LAY-PICKLE"),
        (conventions.NeedsItsOutput, "inplace_output", "LAY-MEM-OUTPUT"),
        (conventions.RefusesAutocast, "autocast", "LAY-AMP"),
    ],
)
def test_a_feature_that_is_refused_may_be_declared_absent(kind: type[Layer], feature: str, clause: str) -> None:
    assert failures(Right(kind), (clause,)) != []
    target = Target.of(declaring(kind, **{feature: "absent"}), "mine")
    assert target.binding_errors() == []
    assert len(target.lacking(load_all()[clause])) == 1
    assert target.subjects(load_all()[clause]) == ()


class DoublesWhenPickled(Layer):
    def __getstate__(self) -> Any:
        return {**self.__dict__, "scale": 2 * self.scale}


class Peeking(torch.autograd.Function):
    """The identity, whose backward pass reads the output as it then is."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.y, ctx.kept = y.clone(), y.clone()
        return ctx.y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (ctx.kept / ctx.y)


class ReadsItsOutput(Layer):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Peeking.apply(super().forward(x))
        return found


class LosesTheUpdateUnderAutocast(Layer):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            return nn.functional.linear(x, self.weight, self.bias)
        return super().forward(x)


class MixesDtypes(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.lora_A.weight.dtype).to(x.dtype)) * (
            2 if self.lora_A.weight.dtype != x.dtype else 1
        )


@pytest.mark.parametrize(
    ("kind", "feature", "says"),
    [
        (Layer, "merging", "merge() changes the weight"),
        (DoublesWhenPickled, "pickling", "its use is neither refused nor right: worst y of a pickled copy["),
        (
            ReadsItsOutput,
            "inplace_output",
            "its use is neither refused nor right: worst dX after y.mul_(2)[",
        ),
        (LosesTheUpdateUnderAutocast, "autocast", "its use is neither refused nor right: worst y under autocast["),
        (
            MixesDtypes,
            "adapter_dtype",
            "its use is neither refused nor right: worst y with an adapter of another dtype[",
        ),
        (Layer, "pickling", ""),
        (Layer, "autocast", ""),
        (Layer, "adapter_dtype", ""),
        (Layer, "memory_efficient", ""),
    ],
)
def test_what_is_declared_absent_and_half_works_is_an_error(kind: type[Layer], feature: str, says: str) -> None:
    problems = Target.of(declaring(kind, **{feature: "absent"}), "mine").binding_errors()
    problems = [problem for problem in problems if problem.startswith("LinearLoRA ")]
    assert [f"LinearLoRA contradicts its declaration: feature {feature!r} is declared absent, but {says}" in problem
            for problem in problems] == [True] * bool(says)  # fmt: skip


def test_absent_merging_is_not_claimed_and_said_so() -> None:
    target = Target.of(declaring(Layer, merging="absent"), "mine")
    assert "merge" not in target.claimed
    assert target.missing("merge") == ("feature merging",)
    assert {target.lacking(clause) for clause in load_all().values() if clause.group == "merge"} == {
        ("feature merging",)
    }


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"dora_bia": "scaled"},
            r"has the unknown feature 'dora_bia': did you mean 'dora_bias'\? expected one of dropout, ",
        ),
        (
            {"dora_bias": "scales"},
            r"\['dora_bias'\] is 'scales': did you mean 'scaled'\? expected 'outside' or 'scaled'",
        ),
        ({"dora_zero_row": "NaN"}, "is 'NaN': expected 'refused' or 'nonfinite' or 'zero' or 'base'"),
    ],
)
def test_an_unknown_feature_or_convention_is_an_error(features: dict[str, str], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Target.of(declaring(Layer, **features), "mine")


def test_a_convention_that_contradicts_the_signature_is_an_error() -> None:
    declared = {"dora_norm": "differentiated", "merging": "supported"}
    target = Target.of(SimpleNamespace(LinearLoRA=Plain, CONFORMANCE={"features": declared}), "mine")
    assert target.binding_errors() == [
        f"LinearLoRA contradicts its declaration: feature {problem}"
        for problem in (
            "'dora_norm' is declared differentiated, but the layer does not take use_dora",
            "'merging' is declared supported, but the layer has no merge",
        )
    ]


class PlainMiddle(Plain):
    """A plain layer that drops between its matrices."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.dropout(self.lora_A(x))) * self.scaling


def test_dropout_between_the_matrices_is_seen_without_a_declaration() -> None:
    assert probed_position(PlainMiddle) == "mid"
    thing = SimpleNamespace(LinearLoRA=PlainMiddle)
    assert failures(thing, ("LAY-DROP-MASK", "LAY-DROP-BWD", "LAY-DROP-MID")) == []
    assert Target.of(thing, "mine").conventions(["layer"]) == {"dropout": "mid", "autocast_updates": "old values"}
    assert Target.of(thing, "mine").lacking(load_all()["LAY-DROP-POST"]) == ("dropout position post",)


def test_a_class_of_a_function_cannot_be_pickled_and_need_not_be() -> None:
    class Local(Plain):
        pass

    target = Target.of(SimpleNamespace(LinearLoRA=Local), "mine")
    assert target.lacking(load_all()["LAY-PICKLE"]) == ("feature pickling",)
    (subject,) = target.subjects(load_all()["LAY-COPY"])
    assert subject.follows("pickling", "absent")


def test_a_layer_gets_cases_in_which_alpha_rounds_nothing() -> None:
    target = Target.of(Right(), "mine")
    case = LinearCase(seed=5, dtype="float16", m=33, k=3, n=17, r=70, scale=2.0, values="cancelling")
    layer, function = (target.subject(name).operands(case) for name in ("LinearLoRA", "lora_linear"))
    assert (layer.case.r, function.case.r) == (66, 70)
    values = layer.values
    largest = abs(values["x"] @ values["lora_A"].T @ values["lora_B"].T).max()
    assert 0 < 33 * largest <= layer.exact_limit


class ByName(nn.Module):
    """A right layer whose matrices are in dictionaries by the adapter's name, as in PEFT, and read there."""

    def __init__(self, base: nn.Linear, r: int = 8, lora_alpha: int = 8) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        options: Any = {"bias": False, "dtype": base.weight.dtype}
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, r, **options)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(r, base.out_features, **options)})
        self.scaling = {"default": lora_alpha / r}
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x: Tensor) -> Tensor:
        update = self.lora_B["default"](self.lora_A["default"](x)) * self.scaling["default"]
        return self.base_layer(x) + update


class TwoNames(ByName):
    """The same with a second adapter."""

    def __init__(self, base: nn.Linear, r: int = 8, lora_alpha: int = 8) -> None:
        super().__init__(base, r, lora_alpha)
        self.lora_A["other"] = nn.Linear(2, 2)


def test_the_matrices_of_a_dictionary_by_name_are_found() -> None:
    thing = SimpleNamespace(LinearLoRA=ByName)
    assert failures(thing, ("LAY-FWD", "LAY-BWD-DA", "LAY-FREEZE", "LAY-SCALING", "LAY-COPY")) == []
    forms = [form.text for form in forms_of(Target.of(thing, "mine"), "float32", dora=False)]
    assert "LinearLoRA.lora_A is a ModuleDict of one adapter: taken as lora_A['default'].weight" in forms
    several = forms_of(Target.of(SimpleNamespace(LinearLoRA=TwoNames), "mine"), "float32", dora=False)
    assert several[0].text == (
        "LinearLoRA.lora_A is a ModuleDict without weight: "
        "`loraspec init --layer tests.test_layer_conventions:TwoNames` wraps the layer"
    )


def without_rslora(*arguments: Any, **options: Any) -> Any:
    """A right layer by a function whose signature takes every option, which refuses use_rslora."""
    if "use_rslora" in options:
        raise TypeError("unexpected keyword argument 'use_rslora'")
    return reference.LinearLoRA(*arguments, **options)


def test_an_option_that_is_declared_absent_is_not_given() -> None:
    clauses = ("LAY-SCALING", "DORA-OPTIONS", "MRG-RANK")
    features = {"features": {"rslora": "absent"}}
    assert failures(SimpleNamespace(LinearLoRA=without_rslora, CONFORMANCE=features), clauses) == []
    found = failures(SimpleNamespace(LinearLoRA=without_rslora), clauses)
    assert {line.split()[0] for line in found} == {*clauses}


def test_a_clause_of_one_convention_is_not_claimed_by_a_layer_of_another() -> None:
    clause = load_all()["LIFE-LAYER-REGION"]
    keeping = Target.of(Right(conventions.KeepsCasts), "mine")
    assert keeping.lacking(clause) == ("feature autocast after an update: new values",)
    assert Target.of(reference, "mine").lacking(clause) == ()
