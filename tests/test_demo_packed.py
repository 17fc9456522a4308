"""`loraspec demo train --base`: training on packed layers beside float layers of the same numbers; refused options."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import optimized
import reference
from conformance import cli
from conformance.demo import fine_tuning, learners, packed_base
from conformance.errors import UsageError

pytest.importorskip("transformers")
WITH_PEFT = all(map(importlib.util.find_spec, ("peft", "bitsandbytes")))
STEPS = 6


@pytest.fixture(scope="module")
def task() -> fine_tuning.FineTuning:
    """The small Llama."""
    return fine_tuning.prepared("llama", STEPS, 0)


def trained(task: fine_tuning.FineTuning, folder: Path, parts: Any) -> tuple[list[learners.Run], float]:
    """The runs of the float layers and of a target on the packed ones, and the band."""
    competing, band = packed_base.contenders(task, "nf4", {"ours": parts})
    learners.start(task, folder)
    runs = []
    for one in competing:
        learner = learners.Learner(one.task, one.label, one.parts, folder, STEPS)
        for window in one.task.windows:
            learner.step(window)
        runs.append(learner.run)
    return runs, band


def off(runs: list[learners.Run]) -> float:
    """The largest difference of the losses, relative to the first."""
    first, other = runs
    return max(abs(a - b) for a, b in zip(first.losses, other.losses, strict=True)) / first.losses[0]


def after_loading(change: Callable[[Any], None], *, alone: bool = False) -> SimpleNamespace:
    """The reference, except that a function changes its adapted layers after loading; `alone`, only one of them."""

    def load_adapter(model: nn.Module, path: Path) -> Any:
        config = reference.load_adapter(model, path)
        layers = [layer for layer in model.modules() if isinstance(layer, reference.PackedLinear)]
        for layer in layers[3:4] if alone else layers:
            change(layer)
        return config

    names = {"packed_linear": reference.packed_linear, "packed_fields": reference.packed_fields}
    return SimpleNamespace(**names, load_adapter=load_adapter, save_adapter=lambda *_: None)


def scale_five_percent_off(layer: Any) -> None:
    layer.weight_absmax *= 1.05


def nibbles_swapped(layer: Any) -> None:
    codes = layer.weight.data
    layer.weight.data = codes << 4 | codes >> 4


def base_missing_in_dx(layer: Any) -> None:
    def without(_: Any, x: tuple[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
        z = x[0] @ layer.dequantize().T
        return y - z + z.detach()

    layer.register_forward_hook(without)


@pytest.mark.parametrize("change", [scale_five_percent_off, nibbles_swapped, base_missing_in_dx])
def test_a_wrong_packed_layer_leaves_the_band(
    task: fine_tuning.FineTuning, tmp_path: Path, change: Callable[[Any], None]
) -> None:
    runs, band = trained(task, tmp_path, after_loading(change, alone=True))
    assert off(runs) > band


def test_a_right_packed_base_stays_far_inside_the_band(task: fine_tuning.FineTuning, tmp_path: Path) -> None:
    runs, band = trained(task, tmp_path, optimized)
    assert [run.target for run in runs] == ["reference float", "ours nf4"]
    assert off(runs) < band / 100
    assert runs[0].losses[0] - runs[0].losses[-1] > 10 * band * runs[0].losses[0]  # they learn more than the band
    products, u = 2 * 15, 2.0**-24  # seven layers of each of the two blocks, and the head; the widest of 128 inputs
    assert band == pytest.approx(3 * products * 4 * u * 128**0.5)


def test_the_float_layers_hold_the_numbers_and_the_packed_ones_the_codes(task: fine_tuning.FineTuning) -> None:
    (floating, packed), _ = packed_base.contenders(task, "nf4", {"reference": reference})
    assert len(task.layers) == 15
    for name in task.layers:
        plain, layer = (one.task.model.get_submodule(name) for one in (floating, packed))
        assert type(plain) is nn.Linear
        assert isinstance(layer, reference.PackedLinear)
        assert torch.equal(plain.weight, layer.dequantize())
        assert not torch.equal(plain.weight, task.model.get_submodule(name).weight)


def test_a_target_that_packs_otherwise_is_refused_beside_another(task: fine_tuning.FineTuning) -> None:
    def rounded(linear: nn.Linear, name: str) -> Any:
        found = reference.packed_linear(linear, name)
        found.weight_absmax *= 2
        return found

    other = SimpleNamespace(packed_linear=rounded, packed_fields=reference.packed_fields)
    with pytest.raises(UsageError) as raised:
        packed_base.contenders(task, "nf4", {"reference": reference, "other": other})
    name = "model.layers.0.self_attn.q_proj"
    assert str(raised.value).startswith(f"other packs {name} [64, 64] to other numbers than reference nf4: ")
    assert str(raised.value).endswith("; expected equal ones, so train other by itself")


def test_a_format_that_does_not_fit_and_a_storage_that_cannot_be_read_are_errors(
    task: fine_tuning.FineTuning,
) -> None:
    def blocks(linear: nn.Linear, name: str) -> Any:
        return reference.packed_linear(linear, name, group_size=48)

    with pytest.raises(UsageError, match=r"q_proj of llama cannot be packed in int4: .*48"):
        packed_base.contenders(task, "int4", {"blocks": SimpleNamespace(packed_linear=blocks)})
    unread = SimpleNamespace(packed_linear=reference.packed_linear, packed_fields=lambda _: None)
    with pytest.raises(UsageError, match="q_proj packed by unread cannot be read: packed_fields returned NoneType"):
        packed_base.contenders(task, "nf4", {"unread": unread})


def test_the_command_writes_table_and_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    targets = ["--targets", "reference,peft"] if WITH_PEFT else []
    names = ["reference float", "reference nf4", "peft nf4" if WITH_PEFT else "optimized nf4"]
    assert cli.main(["demo", "train", "--base", "nf4", "--steps", "2", "--out", str(tmp_path), *targets]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{names[2]}: every loss is within 0.00024 of the first loss of reference float's." in said
    found = json.loads((tmp_path / "train.json").read_text())
    assert found["settings"]["base"] == "nf4"
    assert found["settings"]["band"] == pytest.approx(2.43e-4, rel=0.01)
    assert [run["target"] for run in found["runs"]] == names
    assert len({run["trained"] for run in found["runs"]}) == 1
    adapters = [{*(tmp_path / "adapters").glob(name.replace(" ", "-") + "/adapter_config.json")} for name in names]
    assert all(adapters)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--base", "nf5"], "unknown format 'nf5': expected one of nf4"),
        (["--base", "hqq"], "unknown format 'hqq': expected one of nf4"),
        (["--base", "nf4", "--targets", "json"], "target 'json' has no packed_linear, load_adapter, save_adapter"),
        (["--base", "fp8", "--targets", "peft"], "unknown format of PEFT's base 'fp8': expected one of nf4, fp4"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "train", "--out", str(tmp_path / "new"), *options]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_missing_bitsandbytes_is_named_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = importlib.util.find_spec
    missing = lambda name: None if name == "bitsandbytes" else there(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert cli.main(["demo", "train", "--base", "nf4", "--targets", "peft", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "loraspec: the demo needs bitsandbytes: pip install 'loraspec[packed]'\n"
