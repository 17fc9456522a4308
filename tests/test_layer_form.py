"""Layers in the usual forms pass; what is missing or of another form is said once, with the line to write."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reference
from conformance.report import terminal
from conformance.report.plan import Plan
from conformance.report.report import Report
from conformance.run import plan, preflight
from conformance.run.case_search import Examination
from conformance.run.profiles import Profile
from conformance.run.selection import Selection
from conformance.run.trial import loaded
from conformance.specification.clause import load_all
from conformance.target.form_check import forms_of
from conformance.target.target import Target
from tests.support.commands import judged

FEW = Profile("few", volume=2, interpreted=1, shrinks=0)


class Plain(nn.Module):
    """A layer with bare parameters under names of its own, and neither dropout nor a scale."""

    def __init__(
        self,
        orig_linear: nn.Linear,
        dim: int = 8,
        alpha: float = 32,
        dropout: float = 0.0,
        dropout_position: str = "post",
        lora_A_init_method: str = "xavier",
        lora_dtype: torch.dtype | None = None,
        *,
        use_dora: bool = False,
    ) -> None:
        super().__init__()
        self.base, self.factor, self.dora = orig_linear.requires_grad_(False), alpha / dim, use_dora
        dtype = lora_dtype or orig_linear.weight.dtype
        self.down = nn.Parameter(torch.randn(dim, orig_linear.in_features, dtype=dtype))
        self.up = nn.Parameter(torch.zeros(orig_linear.out_features, dim, dtype=dtype))
        if use_dora:
            self.norms = self.magnitude(orig_linear.weight.norm(dim=1).detach().to(dtype))

    def magnitude(self, norms: torch.Tensor) -> Any:
        return nn.Parameter(norms)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base, down, up = self.base, self.down, self.up
        if not self.dora:
            y: torch.Tensor = base(x)
            return y + (F.linear(F.linear(x.to(down.dtype), down) * self.factor, up)).to(y.dtype)
        adapted = base.weight + self.factor * up @ down
        held = getattr(self.norms, "weight", self.norms).reshape(-1)
        y = F.linear(x, adapted) * (held / adapted.detach().norm(dim=1))
        return y if base.bias is None else y + base.bias


class Bare(Plain):
    """The same layer under the suite's names."""

    lora_A = property(lambda self: self.down)
    lora_B = property(lambda self: self.up)
    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)


class Column(Bare):
    """A layer whose magnitude is [N, 1]."""

    lora_magnitude = property(lambda self: self.norms)

    def magnitude(self, norms: torch.Tensor) -> Any:
        return nn.Parameter(norms[:, None])


class Holding(Column):
    """A layer whose magnitude is the weight of a module, and whose scale is called `scaling`, as in PEFT."""

    scaling = property(lambda self: {"default": self.factor})

    def magnitude(self, norms: torch.Tensor) -> Any:
        module = nn.Module()
        module.weight = nn.Parameter(norms)
        return module


class Transposed(Bare):
    """A layer whose lora_A is [K, r]."""

    lora_A = property(lambda self: self.turned)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.turned = nn.Parameter(self.down.detach().T.contiguous())


class Nested(Bare):
    """A layer whose lora_A is a dictionary by adapter name."""

    lora_A = property(lambda self: self.held)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.held = nn.ModuleDict({"default": nn.Linear(self.down.shape[1], self.down.shape[0], bias=False)})


class Refusing(Bare):
    """A layer that cannot be built."""

    def __init__(self, *args: Any, **options: Any) -> None:
        raise KeyError("no config")


class Odd(Bare):
    """A layer whose scale and bias raise."""

    scale = property(lambda self: self.factor / 0)
    bias = property(lambda self: self.factor // 0)


def target_of(layer: type, **declared: Any) -> Target:
    return Target.of(SimpleNamespace(LinearLoRA=layer, CONFORMANCE=declared), "mine")


def said(layer: type, *, dora: bool = False) -> list[str]:
    return [form.text for form in forms_of(target_of(layer), "float32", dora=dora)]


BARE = [f"LinearLoRA.lora_{x} is a Parameter without a module: taken as lora_{x}.weight" for x in "AB"]
BASE = [f"LinearLoRA has no {part}: taken from base.{part}" for part in ("weight", "bias")]
NO_SCALE = "LinearLoRA has no scale: only y tells it; write in the target:  scale = property(lambda self: self.factor)"


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (
            Plain,
            [
                *(
                    f"LinearLoRA has no {part}; write in the target:  {part} = property(lambda self: self.{path})"
                    for part, path in (("lora_A", "down"), ("lora_B", "up"))
                ),
                *BASE,
                NO_SCALE,
            ],
        ),
        (Bare, [*BARE, NO_SCALE]),
        (Holding, BARE),
        (
            Transposed,
            [
                "LinearLoRA.lora_A is [K, r]: expected [r, K]; write in the target:  "
                "self.lora_A = nn.Parameter(lora_A.T)  # [r, K]",
                BARE[1],
                NO_SCALE,
            ],
        ),
        (
            Refusing,
            [
                "LinearLoRA(nn.Linear(3, 5), dim=2, alpha=14) raised KeyError: 'no config'; write in the target:  "
                "def __init__(self, orig_linear, dim=8, alpha=32, …)"
            ],
        ),
    ],
)
def test_what_is_missing_or_of_another_form_is_said_with_the_line_to_write(layer: type, expected: list[str]) -> None:
    assert said(layer) == expected


def test_the_lines_to_write_mend_the_layer() -> None:
    lines = [form.write for form in forms_of(target_of(Plain), "float32", dora=False)]
    body: dict[str, Any] = {}
    exec("\n".join(lines), body)
    body.pop("__builtins__")
    assert said(type("Mended", (Plain,), body)) == [*BARE, *BASE]


@pytest.mark.parametrize("clause", ["LAY-FWD", "LAY-BWD-DX", "LAY-FREEZE", "LAY-FRESH"])
def test_the_base_weight_is_taken_from_the_layer_that_holds_it(clause: str) -> None:
    class Named(Plain):
        """The layer with the suite's names of A and B, and without `weight` and `bias`."""

        lora_A = property(lambda self: self.down)
        lora_B = property(lambda self: self.up)

    declared = load_all()[clause]
    (subject,) = target_of(Named).subjects(declared)
    result = Examination(declared, subject, "float32", Profile("few", volume=4, interpreted=1, shrinks=0)).run()
    assert result.status == "pass", result.message


def test_a_magnitude_is_looked_at() -> None:
    assert said(Column, dora=True)[-1] == "LinearLoRA.lora_magnitude is [N, 1]: taken as [N]"
    assert said(Bare, dora=True)[-1] == (
        "LinearLoRA has no lora_magnitude; write in the target:  lora_magnitude = property(lambda self: self.norms)"
    )
    assert said(Holding, dora=True) == BARE


def test_what_a_dictionary_holds_and_what_raises_is_named() -> None:
    assert said(Nested)[0] == "LinearLoRA.lora_A is a ModuleDict of one adapter: taken as lora_A['default'].weight"
    found = said(Odd)
    assert "LinearLoRA raised ZeroDivisionError for bias" in found[2]
    assert found[3].startswith("LinearLoRA.scale raised ZeroDivisionError: float division by zero")


CORE = ("LAY-FWD", "LAY-BWD-DX", "LAY-BWD-DA", "LAY-BWD-DB", "LAY-DEFAULTS", "LAY-FREEZE", "LAY-COPY", "LAY-STATE")
DORA = ("DORA-FWD", "DORA-BWD-DX", "DORA-BWD-DM", "DORA-INIT", "DORA-STATE", "DORA-MEM-REFILL", "DORA-TO")


@pytest.mark.parametrize(
    ("layer", "clauses"),
    [(Bare, CORE), (Holding, (*CORE, *DORA)), (Column, DORA)],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_right_layer_passes_in_each_form(layer: type, clauses: tuple[str, ...]) -> None:
    target = target_of(layer)
    for name in clauses:
        clause = load_all()[name]
        (subject,) = target.subjects(clause)
        result = Examination(clause, subject, (clause.dtypes or ("float32",))[0], FEW).run()
        assert result.status == "pass", result


def test_a_wrong_gradient_of_a_column_is_found() -> None:
    class Doubling(Column):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            if self.norms.requires_grad:
                self.norms.register_hook(lambda g: g * 2) if not self.norms._backward_hooks else None
            return y

    clause = load_all()["DORA-BWD-DM"]
    (subject,) = target_of(Doubling).subjects(clause)
    result = Examination(clause, subject, "float32", FEW).run()
    assert "constant ratio 2" in str(result.message)


def test_a_target_without_dropout_claims_no_clause_of_dropout() -> None:
    target = target_of(Bare, dropout_positions=())
    assert not target.subjects(load_all()["LAY-DROP-MASK"])
    clause = load_all()["LAY-FWD"]
    (subject,) = target.subjects(clause)
    case = clause.cases.draw(0, clause.id, 0, dtype="float32")
    assert subject.operands(case).case.dropout == 0


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A target called `mine` that can be imported."""
    module = ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    loaded.cache_clear()  # it holds a module of that name from the test before
    return module


def test_the_plan_and_its_page_have_the_forms(mine: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    vars(mine)["LinearLoRA"] = Plain
    made = plan.plan(Selection.of("mine", groups=["layer"], dtypes=["float32"]))
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))).forms == made.forms
    terminal.show_plan(made)
    assert "preflight LinearLoRA has no lora_A; write in the target:" in capsys.readouterr().out
    vars(mine)["lora_linear"] = reference.lora_linear
    assert not plan.plan(Selection.of("mine", groups=["linear"])).forms


@pytest.mark.parametrize("ends", [lambda: os._exit(3), lambda: time.sleep(25)], ids=["ends", "stops"])
def test_a_layer_that_ends_or_stops_the_process_leaves_the_rest_of_the_plan(
    ends: Callable[[], None], mine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "SECONDS", 0.5)
    vars(mine)["LinearLoRA"] = type("Ending", (Bare,), {"__init__": lambda *_, **__: ends()})
    started = time.monotonic()
    made = plan.plan(Selection.of("mine", groups=["layer"], dtypes=["float32"]))
    assert time.monotonic() - started < 20
    assert made.keys
    assert not made.forms


def test_clauses_that_fail_because_of_a_form_are_told_with_it_alone(
    mine: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vars(mine)["LinearLoRA"] = Plain
    report = judged("mine", clauses=["LAY-FWD", "LAY-BWD-DX", "LAY-BWD-DA"], dtypes=["float32"])
    assert report.verdict == "fail"
    assert Report.from_json(json.loads(json.dumps(report.to_json()))).forms == report.forms
    terminal.show(report, tmp_path)
    out = capsys.readouterr().out
    assert out.count("has no lora_A") == 1
    assert "3 clauses fail because of it: LAY-FWD, LAY-BWD-DX, LAY-BWD-DA" in out
    assert "FAIL LAY" not in out
