"""Layers of libraries that lack a bias, a batch-free x or this project's names are judged by what they do have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

import reference
from conformance.clauses.model.matching_oracle import chosen, matches, pattern_in
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.limits import refused
from conformance.target.target import Target


class Layer(nn.Module):
    """A layer whose adapter has names of its own in the state_dict."""

    def __init__(self, base: nn.Linear, r: int = 8, alpha: float = 16) -> None:
        super().__init__()
        self.pretrained, self.scale = base.requires_grad_(False), alpha / r
        options: Any = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
        self.first = nn.Linear(base.in_features, r, **options)
        self.second = nn.Linear(r, base.out_features, **options)
        nn.init.zeros_(self.second.weight)

    weight = property(lambda self: self.pretrained.weight)
    bias = property(lambda self: self.pretrained.bias)
    lora_A = property(lambda self: self.first)
    lora_B = property(lambda self: self.second)

    def forward(self, x: Tensor) -> Tensor:
        return self.pretrained(x) + self.second(self.first(x) * self.scale)


class Biasless(Layer):
    """A layer that adapts no layer with a bias."""

    def __init__(self, base: nn.Linear, r: int = 8, alpha: float = 16) -> None:
        assert base.bias is None, "bias is not supported"
        super().__init__(base, r, alpha)


class LosesTheBias(Layer):
    """A layer that takes a bias and leaves it out."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + self.second(self.first(x) * self.scale)


class Batched(Layer):
    """A layer that refuses an x without leading dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2:
            raise ValueError("expected min_ndim=2")
        return super().forward(x)


class KeepsDtype(Layer):
    """A layer whose y has the dtype of its weight, under autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(self.weight.dtype)


class SavesAnother(Layer):
    """A layer whose state_dict has the negated first matrix."""

    def state_dict(self, *args: Any, **options: Any) -> Any:
        found = super().state_dict(*args, **options)
        return found | {"first.weight": -found["first.weight"]}


FEATURES = {"state_names": "other", "dropout": "absent"}


def judged(kind: Any, names: tuple[str, ...], **features: str) -> dict[str, str]:
    """By clause what is not a pass: a failure's message, or `not claimed`."""
    declared = {"features": FEATURES | features, "dropout_positions": ()}
    thing = kind if isinstance(kind, SimpleNamespace) else SimpleNamespace(LinearLoRA=kind)
    thing.CONFORMANCE = declared
    target = Target.of(thing, "foreign")
    assert target.binding_errors() == []
    found = {}
    for name in names:
        clause = load_all()[name]
        for subject in target.subjects(clause)[:1]:
            result = Examination(clause, subject, "float32", PROFILES["quick"]).run()
            if result.status != "pass":
                found[name] = str(result.message)
        if not target.subjects(clause):
            found[name] = "not claimed"
    return found


OF_A_BIAS = ("LAY-FWD", "LAY-FREEZE", "LAY-BIAS", "LAY-STATE-NAMES")


def test_a_layer_that_refuses_a_bias_is_judged_without_one() -> None:
    assert refused(Biasless) == {"base_bias"}
    assert judged(Biasless, OF_A_BIAS) == {"LAY-BIAS": "not claimed"}
    assert "bias" in judged(LosesTheBias, OF_A_BIAS)["LAY-FWD"]


@pytest.mark.parametrize(
    ("feature", "said"), [("base_bias", "a base layer with a bias"), ("vector_inputs", "an x [K]")]
)
def test_an_input_that_is_declared_absent_must_be_refused(feature: str, said: str) -> None:
    target = Target.of(SimpleNamespace(LinearLoRA=Layer, CONFORMANCE={"features": {feature: "absent"}}), "mine")
    (problem,) = target.binding_errors()
    assert problem.endswith(f"feature '{feature}' is declared absent, but {said} works")


def test_a_layer_may_ask_for_leading_dimensions_if_it_declares_it() -> None:
    assert judged(Batched, ("LAY-FWD-LEAD", "LAY-BWD-LEAD"), vector_inputs="absent") == {}
    assert "min_ndim=2" in judged(Batched, ("LAY-FWD-LEAD",))["LAY-FWD-LEAD"]


def test_a_state_is_judged_by_the_tensors_in_it_whatever_their_names() -> None:
    assert judged(Layer, ("LIFE-LAYER-STATE",)) == {}
    assert "first.weight" in judged(SavesAnother, ("LIFE-LAYER-STATE",))["LIFE-LAYER-STATE"]


def test_the_declared_dtype_under_autocast_holds_in_lives_too() -> None:
    names = ("LAY-AMP", "LIFE-LAYER-FWD")
    assert judged(KeepsDtype, names, autocast="layer dtype") == {}
    assert judged(KeepsDtype, names).keys() == set(names)


def patch(
    orig_linear: Any,
    dim: int = 8,
    alpha: Any = 32,
    dropout: float = 0.0,
    dropout_position: str = "post",
    lora_A_init_method: str = "xavier",
    lora_dtype: Any = None,
    use_triton: bool = True,
) -> Any:
    """Patching that takes no dtype of the adapter, and drops nothing."""
    refuse(dropout, lora_dtype)
    return reference.patch_linear_module(
        orig_linear, dim, alpha, 0.0, dropout_position, lora_A_init_method, None, use_triton
    )


def apply(model: nn.Module, peft_config: Any) -> int:
    """The same for a model."""
    refuse(peft_config.dropout, peft_config.lora_dtype)
    return reference.apply_lora_to_linear_modules(model, peft_config)


def refuse(dropout: float, lora_dtype: Any) -> None:
    if dropout or lora_dtype is not None:
        raise NotImplementedError("dropout and lora_dtype")


def test_patching_without_dropout_and_dtypes_is_judged_by_its_other_options() -> None:
    target = SimpleNamespace(patch_linear_module=patch, apply_lora_to_linear_modules=apply)
    assert judged(target, ("MOD-OPTIONS", "MOD-TRAINING-FLAG"), adapter_dtype="absent", state_names="standard") == {}


@pytest.mark.parametrize(
    ("pattern", "name", "wanted"),
    [("m.*", "m.a.b", True), ("m.*", "m", False), ("[ab].q?", "b.q1", True), ("q", "m.q", False), ("*q", "m.q", True)],
)
def test_patterns_of_a_shell_match_the_full_name(pattern: str, name: str, wanted: bool) -> None:
    assert matches(pattern, name, "shell") is wanted


@pytest.mark.parametrize("kind", ["exact", "run", "part", "tail", "legacy"])
def test_patterns_of_a_shell_are_drawn_so_that_they_match(kind: str) -> None:
    drawn = [(f"model.layers.{i}.q_proj.b", pattern_in("shell", f"model.layers.{i}.q_proj", kind, i)) for i in range(9)]
    names = [name.removesuffix(end) for name, _ in drawn for end in ("", ".b")]
    assert sum(bool(chosen([pattern], names, "shell")) for _, pattern in drawn) >= 3
