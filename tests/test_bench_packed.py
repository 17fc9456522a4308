"""`loraspec bench --base`: packed layers of two targets over the frozen layer, and the check of their results."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import optimized
from conformance.bench import layers, session
from conformance.bench.layers import Contender
from conformance.bench.measured_case import FROZEN, MEASURED
from conformance.cli import main
from conformance.errors import UsageError
from conformance.target.target import Target
from tests.support.timed_targets import SIZE, measured


def timed(name: str, **names: Any) -> Contender:
    """A target of `optimized` with some names replaced, as a contender on packed bases."""
    given = {name: getattr(optimized, name) for name in ("packed_linear", "patch_linear_module", "packed_fields")}
    return Contender(Target.of(SimpleNamespace(**{**given, **names}), name), "packed_linear")


def test_packed_layers_are_timed_over_the_floating_point_layer() -> None:
    case = measured(timed("ours"), base="nf4")
    (row,) = case.layers
    assert case.case == f"{SIZE} float32, base nf4"
    assert (row.label, row.status) == ("ours", MEASURED)
    assert row.costs is not None
    assert FROZEN in row.costs.over
    assert row.costs.saved_bytes == 4 * SIZE.m * SIZE.r  # x Aᵀ; the storage is the layer's own


def test_the_factors_of_a_layer_in_a_module_for_each_adapter_are_found() -> None:
    a, b = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
    layer = SimpleNamespace(lora_A=nn.ModuleDict({"default": a}), lora_B=nn.ModuleDict({"default": b}))
    assert layers.factors(layer) == (a.weight, b.weight)
    assert layers.factors(SimpleNamespace(lora_A=a.weight, lora_B=b.weight)) == (a.weight, b.weight)


def test_a_layer_that_multiplies_by_the_weight_from_before_packing_is_not_ranked() -> None:
    def patched(base: Any, *sizes: Any) -> Any:
        return optimized.patch_linear_module(original[id(base)], *sizes)

    def packed(linear: Any, name: str) -> Any:
        base = optimized.packed_linear(linear, name)
        original[id(base)] = linear
        return base

    original: dict[int, Any] = {}
    (row,) = measured(timed("unrounded", packed_linear=packed, patch_linear_module=patched), base="nf4").layers
    assert row.status.startswith("wrong at this size, not ranked")


def test_the_option_reaches_the_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def run(wanted: session.Wanted, say: Any) -> Any:  # noqa: ARG001
        seen.append(wanted)
        raise UsageError("enough")

    monkeypatch.setattr(session, "run", run)
    assert main(["bench", "optimized", "--base", "fp4", "--report-dir", str(tmp_path)]) == 2
    assert seen[0].base == "fp4"
    assert [c.subject for c in layers.contenders("optimized", "cpu", packed=True)] == ["packed_linear"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--base", "nf5"], "unknown format 'nf5': expected one of nf4"),
        (["--base", "nf4", "--adapters", "2"], "--base times layers on a packed base, which have neither"),
    ],
)
def test_a_wrong_option_is_refused(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "optimized", *options]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
