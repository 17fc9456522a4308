"""The state_dict of a layer with other names than the standard ones is judged by its values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from torch import Tensor, nn

from conformance.clauses.life.life_case import LifeCase
from conformance.judgement.outcomes import Violation
from conformance.specification.clause import load_all
from conformance.target.target import Target


class OtherNames(nn.Module):
    """A right layer whose state_dict has other names than its attributes, as torchtune's has."""

    CONFORMANCE: ClassVar[dict[str, Any]] = {"features": {"state_names": "other"}}
    names = ("lora_a", "lora_b")

    def __init__(self, base: nn.Linear, r: int = 8, lora_alpha: int = 8) -> None:
        super().__init__()
        self.weight, self.bias = base.weight.requires_grad_(False), base.bias
        self.scale = lora_alpha / r
        options: Any = {"bias": False, "dtype": base.weight.dtype}
        self.add_module(self.names[0], nn.Linear(base.in_features, r, **options))
        self.add_module(self.names[1], nn.Linear(r, base.out_features, **options))
        if base.bias is not None:
            base.bias.requires_grad_(False)

    @property
    def lora_A(self) -> Any:
        return getattr(self, self.names[0])

    @property
    def lora_B(self) -> Any:
        return getattr(self, self.names[1])

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias) + self.lora_B(self.lora_A(x)) * self.scale


class DownAndUp(OtherNames):
    """The same with names that do not say which matrix is lora_A."""

    names = ("lora_down", "lora_up")


class SavesHalf(OtherNames):
    """Its state_dict has half of lora_A."""

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        state = super().state_dict(*arguments, **options)
        state["lora_a.weight"] = state["lora_a.weight"] / 2
        return state


class SwapsTheBase(DownAndUp):
    """Its state_dict has another weight."""

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        state = super().state_dict(*arguments, **options)
        state["weight"] = state["weight"] + 1
        return state


def state_judged(kind: type[OtherNames], life: str = "") -> Any:
    """What LIFE-LAYER-STATE says of a life of a layer."""
    clause = load_all()["LIFE-LAYER-STATE"]
    (subject,) = Target.of(SimpleNamespace(LinearLoRA=kind, CONFORMANCE=kind.CONFORMANCE), "mine").subjects(clause)
    return clause.check(subject, LifeCase(k=3, n=5, r=2, bias=True, life=life))


@pytest.mark.parametrize("kind", [OtherNames, DownAndUp])
def test_the_tensors_of_a_state_dict_with_other_names_are_found(kind: type[OtherNames]) -> None:
    assert state_judged(kind, "forward+step") is not None


@pytest.mark.parametrize("kind", [SavesHalf, SwapsTheBase])
def test_other_values_in_such_a_state_dict_fail(kind: type[OtherNames]) -> None:
    with pytest.raises(Violation, match="state_dict"):
        state_judged(kind)
