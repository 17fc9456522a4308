"""Features: a target is judged by what its signature, its declaration or its behaviour shows, and by no more."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformance.errors import TargetError
from conformance.report import features as claims
from conformance.report.report import Claim, Report
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.specification.features import FEATURES
from conformance.target.features import probed_position
from conformance.target.signature import arguments_for, default_of, takes
from conformance.target.target import Target
from tests.support.matrices import a_clause, report_of


class Plain(nn.Module):
    """A layer in plain PyTorch, with the argument names of PEFT and dropout of x."""

    def __init__(self, base: nn.Linear, r: int = 4, lora_alpha: int = 16, lora_dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, r, bias=False, dtype=base.weight.dtype)
        self.lora_B = nn.Linear(r, base.out_features, bias=False, dtype=base.weight.dtype)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.scaling = lora_alpha / r
        self.dropout = nn.Dropout(lora_dropout)

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(self.dropout(x))) * self.scaling


class DropsTheOutput(Plain):
    """The same with dropout of the adapter's output."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.dropout(self.lora_B(self.lora_A(x)) * self.scaling)


class HasNoDropout(nn.Module):
    """A layer without dropout."""

    def __init__(self, base: nn.Linear, rank: int = 8, alpha: int = 8) -> None:
        super().__init__()
        self.inner = Plain(base, rank, alpha)


class NeverDrops(Plain):
    """A layer that takes dropout and ignores it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x)) * self.scaling


def target(kind: type, **declared: Any) -> Target:
    """A layer class as a target."""
    return Target.of(SimpleNamespace(LinearLoRA=kind, CONFORMANCE=declared), kind.__name__)


def failing(kind: type, *clauses: str) -> list[str]:
    """Those of these clauses that a layer class fails in float32, or does not claim."""
    found = []
    for name in clauses:
        subjects = target(kind).subjects(load_all()[name])
        status = (
            Examination(load_all()[name], subjects[0], "float32", PROFILES["quick"]).run().status if subjects else ""
        )
        found += [name] * (status != "pass")
    return found


DROPPING = ("LAY-DROP-MASK", "LAY-DROP-BWD", "LAY-DROP-REL", "LAY-DROP-ALL", "LAY-DROP-CKPT", "LAY-DROP-NEEDS")


def test_a_plain_layer_is_right_with_nothing_declared() -> None:
    core = ("LAY-FWD", "LAY-BWD-DX", "LAY-SCALING", "LAY-DEFAULTS", "LAY-FRESH", "LAY-COPY", "LAY-STATE")
    assert failing(Plain, *core, *DROPPING) == []
    assert target(Plain).binding_errors() == []
    assert failing(DropsTheOutput, *DROPPING, "LAY-DROP-POST") == []


def test_the_position_of_dropout_is_seen() -> None:
    assert [probed_position(kind) for kind in (Plain, DropsTheOutput, NeverDrops)] == ["pre", "post", None]
    assert target(Plain).positions("LinearLoRA") == ("pre",)
    assert target(NeverDrops).positions("LinearLoRA") == ("pre", "post")
    assert target(Plain, dropout_positions=["post"]).positions("LinearLoRA") == ("post",)
    state = torch.get_rng_state()
    probed_position(Plain)
    assert torch.equal(torch.get_rng_state(), state), "the probe changed torch's random state"


def test_dropout_that_never_acts_still_fails() -> None:
    assert "LAY-DROP-MASK" in failing(NeverDrops, *DROPPING)


@pytest.mark.parametrize(
    ("kind", "clause", "missing"),
    [
        (Plain, "LAY-INIT", "feature choice of initialisation"),
        (Plain, "LAY-FWD-MIXED", "feature adapter dtype"),
        (Plain, "LAY-MEMORY-ANY", "feature memory-efficient mode"),
        (HasNoDropout, "LAY-DROP-MASK", "feature dropout"),
    ],
)
def test_a_clause_of_an_absent_feature_is_not_claimed(kind: type, clause: str, missing: str) -> None:
    assert target(kind).lacking(load_all()[clause]) == (missing,)


def test_a_declared_feature_counts_more_than_the_signature() -> None:
    clause = load_all()["LAY-DROP-MASK"]
    assert target(Plain, features={"dropout": "absent"}).lacking(clause) == ("feature dropout",)
    assert target(HasNoDropout, features={"dropout": "supported"}).lacking(clause) == ()


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"rslor": "absent"}, r"unknown feature 'rslor': did you mean 'rslora'\? expected one of dropout, rslora"),
        ({"dropout": "maybe"}, r"\['dropout'\] is 'maybe': expected 'supported' or 'absent'"),
    ],
)
def test_a_wrong_declaration_is_an_error(declared: dict[str, str], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        target(Plain, features=declared)


def test_arguments_go_by_the_names_of_the_signature() -> None:
    assert takes(Plain, "dim") == "r"
    assert takes(Plain, "dropout_position") is None
    assert default_of(Plain, "alpha") == 16
    wanted = {"dim": 2, "alpha": 3, "dropout": 0.5, "dropout_position": "pre"}
    assert arguments_for(Plain, wanted) == {"r": 2, "lora_alpha": 3, "lora_dropout": 0.5}
    assert arguments_for(HasNoDropout, {"dim": 2, "dropout": 0.5}) == {"rank": 2, "dropout": 0.5}


def test_a_layer_that_takes_no_rank_does_not_bind() -> None:
    class Odd(nn.Module):
        def __init__(self, base: nn.Linear, width: int) -> None: ...

    (problem,) = target(Odd).binding_errors()
    assert "does not take its 7 positional arguments" in problem


def test_every_clause_names_a_feature_that_there_is() -> None:
    assert {name for clause in load_all().values() for name in clause.features} <= set(FEATURES)


def test_the_verdict_counts_core_and_features() -> None:
    clauses = [
        a_clause("LIN-A", "linear", status="pass"),
        a_clause("LIN-B", "linear", status="fail", feature="dropout"),
        a_clause("LIN-C", "linear", status="not_claimed", feature="rslora"),
        a_clause("LIN-D", "linear", status="fail", level="SHOULD"),
    ]
    found = claims.claims(clauses, ["linear"])
    assert (found.core, found.features["dropout"], found.features["rslora"]) == (Claim(1, 1), Claim(0, 1), Claim(0, 0))
    said = claims.line(report_of(core=found.core, features=found.features))
    assert said == "core 1 of 1; features: dropout ✗ (1 of 1 fail), rsLoRA absent"
    assert claims.line(report_of(*clauses)) == ""


def test_a_report_keeps_the_conventions_and_its_verdict_names_them() -> None:
    clauses = [
        a_clause("DORA-BIAS", "dora", feature="dora_bias"),
        a_clause("LAY-DROP-MASK", "layer", feature="dropout"),
    ]
    found = claims.claims([a_clause("LAY-FWD", "layer"), *clauses], ["layer", "dora"])
    about = {"core": found.core, "features": found.features, "conventions": {"dora_bias": "scaled", "dropout": "mid"}}
    made = report_of(*clauses, **about)
    assert claims.line(made) == "core 1 of 1; features: dropout mid ✓, DoRA bias scaled ✓"
    assert Report.from_json(json.loads(json.dumps(made.to_json()))).conventions == made.conventions
    assert "conventions" not in report_of(*clauses).to_json()


NO_RSLORA = "feature 'rslora' is declared supported, but the layer does not take use_rslora"


@pytest.mark.parametrize(
    ("kind", "declared", "problems"),
    [
        (Plain, {"dropout": "absent"}, ["feature 'dropout' is declared absent, but dropout=0.5 changes the output"]),
        (NeverDrops, {"dropout": "absent"}, []),
        (HasNoDropout, {"dropout": "absent"}, []),
        (
            Plain,
            {"rslora": "supported"},
            ["feature 'rslora' is declared supported, but the layer does not take use_rslora"],
        ),
        (Plain, {"dropout": "supported", "rslora": "absent"}, []),
    ],
)
def test_a_declaration_that_the_layer_contradicts_is_named(
    kind: type, declared: dict[str, str], problems: list[str]
) -> None:
    assert target(kind, features=declared).binding_errors() == [
        f"LinearLoRA contradicts its declaration: {problem}" for problem in problems
    ]


def test_what_is_judged_under_autocast_is_judged_only_where_there_is_autocast() -> None:
    under = {name: clause for name, clause in load_all().items() if "AMP" in name.split("-") or "AUTOCAST" in name}
    assert len(under) >= 15
    assert not [name for name, clause in under.items() if "autocast" not in clause.features]
    inside = ("under autocast", "inside an autocast region")
    said = {name for name, clause in load_all().items() if any(word in clause.sentence.lower() for word in inside)}
    assert said <= {*under, "LIFE-LAYER-REGION"}
