"""A layer may hold its matrices under any names in its state_dict, and lives as any other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor, nn

from conformance.clauses.life.life_case import LifeCase
from conformance.judgement.outcomes import Violation
from conformance.specification.clause import load_all
from conformance.target.target import Target

STATE = load_all(("life",))["LIFE-LAYER-STATE"]


class DownAndUp(nn.Module):
    """A right layer whose matrices are `down` and `up`, of which its state_dict holds copies, as in LyCORIS."""

    def __init__(self, base: nn.Linear, r: int, lora_alpha: float) -> None:
        super().__init__()
        like: Any = {"dtype": base.weight.dtype, "bias": False}
        self.up, self.down = nn.Linear(r, base.out_features, **like), nn.Linear(base.in_features, r, **like)
        nn.init.zeros_(self.up.weight)
        self.base, self.scaling = base.requires_grad_(False), lora_alpha / r
        self.register_state_dict_post_hook(copied)

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)
    lora_A = property(lambda self: self.down)
    lora_B = property(lambda self: self.up)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.up(self.down(x)) * self.scaling
        return y


def copied(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
    """Replace the tensors of a state_dict by copies."""
    del prefix
    state.update({key: value.clone() for key, value in state.items()})


def zeroed(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
    """Replace B in a state_dict by zeros."""
    del prefix
    state["up.weight"].zero_()


class Stale(DownAndUp):
    """The same with a state_dict that holds `up` as zeros."""

    def __init__(self, base: nn.Linear, r: int, lora_alpha: float) -> None:
        super().__init__(base, r, lora_alpha)
        self.register_state_dict_post_hook(zeroed)


def lived(kind: type, r: int) -> float | None:
    """The judgement of the layer's state after its matrix B changed."""
    target = Target.of(SimpleNamespace(LinearLoRA=kind, CONFORMANCE={"features": {"state_names": "other"}}))
    (subject,) = target.subjects(STATE)
    found: float | None = STATE.check(subject, LifeCase(dtype="float32", k=3, n=3, r=r, life="fill-B+train"))
    return found


@pytest.mark.parametrize("r", [2, 3])
def test_matrices_under_other_names_are_found_in_a_state_dict(r: int) -> None:
    assert lived(DownAndUp, r) is not None


def test_a_stale_matrix_under_another_name_is_seen() -> None:
    with pytest.raises(Violation, match=r"up\.weight"):
        lived(Stale, 2)
