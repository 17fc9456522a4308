"""Limits of right layers: a rank, a dropout or an alpha that they refuse, no alpha at all, a merge in eval mode."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.errors import TargetError
from conformance.isolation.process_state import changes_by_import, taken
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target import limits
from conformance.target.limits import refused
from conformance.target.target import Target

CLAUSES = (
    *("LAY-FWD", "LAY-BWD-DA", "LAY-FWD-SCALE", "LAY-BWD-SCALE", "LAY-DEFAULTS", "LAY-SIZE-LONG", "LAY-FRESH"),
    *("LAY-SCALING", "LAY-REL-SCALE", "LAY-DROP-ALL", "LAY-DROP-EVAL", "LAY-BWD-GRAPH", "LAY-TRAIN"),
    "LAY-FWD-OVERFLOW-ORDER",
)
DROPPING = ("LAY-DROP-ALL", "LAY-DROP-EVAL", "LAY-TRAIN")


class Layer(nn.Module):
    """A plain layer."""

    def __init__(self, base: nn.Linear, r: int = 8, alpha: float = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = base.weight, base.bias, alpha / r
        self.lora_A = nn.Parameter(base.weight.new_ones(r, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, r))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        update = F.linear(F.linear(self.dropout(x), self.lora_A) * self.scale, self.lora_B)
        return F.linear(x, self.weight, self.bias) + update


class Strict(Layer):
    """A layer that refuses ranks above its sizes, dropout of 1 and alpha of 0."""

    def __init__(self, base: nn.Linear, r: int = 8, alpha: float = 16, dropout: float = 0.0) -> None:
        if r > min(base.weight.shape):
            raise ValueError(f"r={r} is larger than the layer")
        assert 0 <= dropout < 1
        if alpha <= 0:
            raise ValueError(f"alpha={alpha} is not positive")
        super().__init__(base, r, alpha, dropout)


class WithoutAlpha(Layer):
    """A layer that multiplies by one."""

    def __init__(self, base: nn.Linear, r: int = 8) -> None:
        super().__init__(base, r, r)


class MergesInEval(Layer):
    """A layer that merges its adapter into its weight in eval mode."""

    merged = False

    def train(self, mode: bool = True) -> MergesInEval:
        if self.merged is mode:
            update = self.scale * self.lora_B.detach() @ self.lora_A.detach()
            self.weight.data = self.weight.data + (-update if mode else update)
            self.merged = not mode
        return super().train(mode)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) if self.merged else super().forward(x)


class ScalesLast(Layer):
    """A layer that scales the finished update."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def verdicts(kind: type, **features: str) -> dict[str, str]:
    """By clause what is not a pass: a failure's message, or `not claimed`."""
    target = Target.of(SimpleNamespace(LinearLoRA=kind, CONFORMANCE={"features": features}), kind.__name__)
    assert target.binding_errors() == []
    found = {}
    for name in CLAUSES:
        clause = load_all()[name]
        subjects = target.subjects(clause)
        dtype = "float16" if "float16" in clause.dtypes else "float32"
        result = Examination(clause, subjects[0], dtype, PROFILES["quick"]).run() if subjects else None
        if result is None or result.status != "pass":
            found[name] = str(result.message) if result else "not claimed"
    return found


@pytest.mark.parametrize(
    ("kind", "features", "expected"),
    [
        (Layer, {}, ()),
        (Strict, {}, ("LAY-DROP-ALL",)),
        (WithoutAlpha, {}, (*DROPPING, "LAY-FWD-OVERFLOW-ORDER", "LAY-REL-SCALE", "LAY-SCALING")),
        (MergesInEval, {"eval_mode": "merged"}, ()),
        (ScalesLast, {"early_scaling": "absent", "dropout": "absent"}, (*DROPPING, "LAY-FWD-OVERFLOW-ORDER")),
    ],
)
def test_a_layer_within_its_limits_passes(kind: type, features: dict[str, str], expected: tuple[str, ...]) -> None:
    assert verdicts(kind, **features) == dict.fromkeys(expected, "not claimed")


def test_the_limits_of_a_class_are_those_that_it_states() -> None:
    assert refused(Strict) == {"large_rank", "full_dropout", "zero_alpha"}
    assert refused(Layer) == refused(WithoutAlpha) == refused(lambda base: base) == frozenset()

    class Broken(Layer):
        def __init__(self, base: nn.Linear, r: int = 8, alpha: float = 16, dropout: float = 0.0) -> None:
            super().__init__(base, r, alpha, 1 / (1 - dropout))

    assert refused(Broken) == frozenset()  # it builds no layer at all


def test_a_class_is_asked_once_until_its_constructor_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changing(Layer):
        pass

    def stricter(self: Layer, base: nn.Linear, r: int = 8, alpha: float = 16, dropout: float = 0.0) -> None:
        if alpha <= 0:
            raise ValueError(f"alpha={alpha} is not positive")
        Layer.__init__(self, base, r, alpha, dropout)

    asked: list[object] = []
    answered = limits.processes.answered
    monkeypatch.setattr(limits.processes, "answered", lambda *given: (asked.append(given), answered(*given))[1])
    assert refused(Changing) == refused(Changing) == frozenset()
    assert len(asked) == 1
    monkeypatch.setattr(Changing, "__init__", stricter)
    assert refused(Changing) == {"zero_alpha"}
    monkeypatch.setattr(limits.processes, "answered", lambda *_: None)  # as where the process hangs or ends
    assert refused(type("Hanging", (Layer,), {})) == frozenset()
    assert len(asked) == 2


@pytest.mark.parametrize("ends", [lambda: os._exit(0), lambda: time.sleep(60)])
def test_a_class_that_ends_or_stops_the_process_states_no_limits(
    ends: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(Strict):
        def __init__(self, base: nn.Linear, r: int = 8, alpha: float = 16, dropout: float = 0.0) -> None:
            ends()
            super().__init__(base, r, alpha, dropout)

    monkeypatch.setattr(limits, "SECONDS", 0.3)
    started = time.monotonic()
    assert refused(Ending) == frozenset()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("feature", "said"),
    [("large_rank", "dim=5 works"), ("full_dropout", "dropout=1.0 works"), ("zero_alpha", "alpha=0 works")],
)
def test_a_limit_that_a_layer_does_not_have_is_a_contradiction(feature: str, said: str) -> None:
    module = SimpleNamespace(LinearLoRA=Layer, CONFORMANCE={"features": {feature: "absent"}})
    (problem,) = Target.of(module, "mine").binding_errors()
    assert problem.endswith(f"feature '{feature}' is declared absent, but {said}")
    strict = SimpleNamespace(LinearLoRA=Strict, CONFORMANCE={"features": {feature: "absent"}})
    assert Target.of(strict, "mine").binding_errors() == []


def test_an_alpha_that_is_declared_absent_must_not_act() -> None:
    module = SimpleNamespace(LinearLoRA=Layer, CONFORMANCE={"features": {"alpha": "absent"}})
    (problem,) = Target.of(module, "mine").binding_errors()
    assert problem.endswith("feature 'alpha' is declared absent, but alpha=6 changes the output")
    with pytest.raises(TargetError, match=r"expected one of .*zero_alpha"):
        Target.of(SimpleNamespace(LinearLoRA=Layer, CONFORMANCE={"features": {"zero_alphas": "absent"}}), "mine")


@pytest.mark.parametrize(
    ("act", "changed"),
    [
        (lambda: random.getrandbits(24), []),
        (lambda: [random.random() for _ in range(9)], []),
        (lambda: random.seed(0), ["Python's random state"]),
        (lambda: torch.rand(1), ["torch's random state"]),
    ],
)
def test_an_import_may_draw_but_not_seed(act: Callable[[], Any], changed: list[str]) -> None:
    state = random.getstate()
    try:
        random.seed(1)  # another test may have left the state that an act makes
        with torch.random.fork_rng(devices=[]):
            before = taken(("Python's random state", "torch's random state"))
            act()
            assert changes_by_import(before) == changed
    finally:
        random.setstate(state)
