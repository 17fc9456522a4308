"""Golden adapters: their files, right loaders, and wrong loaders, each of which is seen in its adapter and module."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformance import cli
from conformance.adapters import golden_files, table
from conformance.adapters.base_models import base_model
from conformance.adapters.catalogue import BY_NAME, GOLDEN
from conformance.adapters.judgement import MISSING, REFUSED, RIGHT, UNCLEAR, WRONG, Cell, judged
from conformance.adapters.loader import Loader
from conformance.adapters.recipe import contents
from conformance.errors import TargetError, UsageError
from conformance.target.target import Target
from tests.baselines import adapters as right

REPORTS = Path(golden_files.__file__).parent.parent / "reports"
REFUSED_BY_US = {"lora-bias", "trained-bias", "embedding", "modules-to-save", "no-prefix"}
LARGEST = 16_000  # bytes in a folder


def loader(**names: Any) -> Loader:
    """A loader of a target with some names."""
    return Loader(Target.of(SimpleNamespace(**names), "mine"), {})


def cell(made: Any, adapter: str) -> Cell:
    """What an instance of a class with `load_adapter_deltas` makes of an adapter."""
    return judged(loader(load_adapter_deltas=made.load_adapter_deltas), BY_NAME[adapter])


@pytest.mark.parametrize("adapter", GOLDEN, ids=lambda adapter: adapter.name)
def test_the_files_are_what_the_script_makes(adapter: Any) -> None:
    folder = golden_files.FOLDER / adapter.name
    made = golden_files.files(adapter)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made, "python -m …adapters.golden_files"
    assert sum(map(len, made.values())) < LARGEST


def test_there_is_a_folder_for_each_golden_adapter_and_no_other() -> None:
    assert {path.name for path in golden_files.FOLDER.iterdir()} == set(BY_NAME)


@pytest.mark.parametrize("adapter", GOLDEN, ids=lambda adapter: adapter.name)
def test_each_change_is_one_of_the_model_and_much_larger_than_its_budget(adapter: Any) -> None:
    sizes = {name: tuple(p.shape) for name, p in base_model(adapter.base).named_parameters(remove_duplicate=False)}
    changes = contents(adapter)[1]
    assert changes
    for name, change in changes.items():
        assert sizes[name] == change.value.shape
        assert abs(change.value).max() > 5 * change.budget.max(), "no wrong factor would show"


def test_the_small_loader_is_right_or_refuses() -> None:
    cells = {adapter.name: cell(right.Loader(), adapter.name) for adapter in GOLDEN}
    refused = {name for name, found in cells.items() if found.status == REFUSED}
    assert refused == {"trained-bias", "embedding", "modules-to-save"}
    assert {found.status for name, found in cells.items() if name not in refused} == {RIGHT}
    assert all(found.ratio is not None and found.ratio < 1 for found in cells.values() if found.status == RIGHT)


class IgnoresRsLoRA(right.Loader):
    def scale(self, config: Any, name: str, rank: int) -> float:
        return super().scale(config | {"use_rslora": False}, name, rank)


class IgnoresTheRankOfTheModule(right.Loader):
    def scale(self, config: Any, name: str, rank: int) -> float:
        return super().scale(config, name, config["r"])


class IgnoresPatterns(right.Loader):
    def matched(self, patterns: Any, name: str, default: Any) -> Any:
        return default


class TakesPatternsForNames(right.Loader):
    def matched(self, patterns: Any, name: str, default: Any) -> Any:
        return next((value for key, value in patterns.items() if name.endswith(key)), default)


class IgnoresAlpha(right.Loader):
    def scale(self, config: Any, name: str, rank: int) -> float:
        return 1.0


class DoesNotTurnConv1D(right.Loader):
    def turned(self, module: nn.Module, update: Tensor) -> Tensor:
        return update


class IgnoresTheMagnitude(right.Loader):
    def dora(self, weight: Tensor, update: Tensor, magnitude: Tensor) -> Tensor:
        return update


class TakesTheNormOfTheWeight(right.Loader):
    def dora(self, weight: Tensor, update: Tensor, magnitude: Tensor) -> Tensor:
        return (weight + update) * (magnitude / weight.norm(dim=1))[:, None] - weight


class DoesNotScaleTheBias(right.Loader):
    def bias_scale(self, config: Any, name: str, rank: int) -> float:
        return 1.0


class TakesBExpertByExpert(right.Loader):
    def unpacked(self, A: Tensor, B: Tensor, count: int, rank: int) -> tuple[Tensor, Tensor]:
        return super().unpacked(A, B, count, rank)[0], B.reshape(len(B), count, rank).permute(1, 0, 2)


class ChangesTheTiedEmbedding(right.Loader):
    def load_adapter_deltas(self, model: nn.Module, path: str) -> dict[str, Tensor]:
        found = super().load_adapter_deltas(model, path)
        return found | {"model.embed_tokens.weight": found["lm_head.weight"]}


class SkipsNamesWithoutPrefix(right.Loader):
    def load_adapter_deltas(self, model: nn.Module, path: str) -> dict[str, Tensor]:
        return {}


class RoundsToFloat16(right.Loader):
    def load_adapter_deltas(self, model: nn.Module, path: str) -> dict[str, Tensor]:
        return {name: t.half() for name, t in super().load_adapter_deltas(model, path).items()}


@pytest.mark.parametrize(
    ("made", "adapter", "says"),
    [
        (IgnoresRsLoRA, "rslora", "layers.0.self_attn.q_proj.weight.*constant ratio 0.707"),
        (IgnoresRsLoRA, "experts-rslora", r"mlp.experts.*constant ratio 0.577"),
        (IgnoresTheRankOfTheModule, "rank-pattern", "q_proj.weight.*constant ratio 2"),
        (IgnoresTheRankOfTheModule, "pattern-order", r"layers.1.self_attn.q_proj.weight.*constant ratio 2"),
        (IgnoresPatterns, "alpha-pattern", "v_proj.weight.*constant ratio 0.6"),
        (TakesPatternsForNames, "pattern-regex", "v_proj.weight.*constant ratio 0.6"),
        (IgnoresAlpha, "alpha", "proj.weight.*constant ratio 0.667"),
        (DoesNotTurnConv1D, "near-names", "attn.c_proj.weight.*transposed"),
        (DoesNotTurnConv1D, "conv1d", r"c_attn.weight is \[24, 8\]: expected \[8, 24\]"),
        (IgnoresTheMagnitude, "dora", "proj.weight"),
        (TakesTheNormOfTheWeight, "dora", "proj.weight"),
        (DoesNotScaleTheBias, "lora-bias", "proj.bias.*constant ratio 0.667"),
        (TakesBExpertByExpert, "experts", "mlp.experts"),
        (ChangesTheTiedEmbedding, "tied-head", "model.embed_tokens.weight"),
        (SkipsNamesWithoutPrefix, "no-prefix", "q_proj.weight.*zeros"),
        (RoundsToFloat16, "rslora", "proj.weight"),
    ],
)
def test_a_wrong_loader_is_seen_in_its_adapter_and_module(made: Any, adapter: str, says: str) -> None:
    found = cell(made(), adapter)
    assert found.status == WRONG
    assert found.message.startswith(f"{adapter}: ")
    assert re.search(says, " ".join(found.message.split())), found.message


def test_a_wrong_loader_is_right_on_the_adapters_that_do_not_show_its_defect() -> None:
    assert cell(IgnoresRsLoRA(), "plain").status == RIGHT
    assert cell(IgnoresPatterns(), "alpha").status == RIGHT
    assert cell(DoesNotTurnConv1D(), "dora").status == RIGHT


def test_a_loader_that_returns_something_else_is_told_what_is_expected() -> None:
    def told(returned: Any) -> str:
        found = judged(loader(load_adapter_deltas=lambda *_: returned), BY_NAME["plain"])
        assert (found.status, found.ratio) == (WRONG, float("inf"))
        return found.message

    assert told([1]) == "plain: load_adapter_deltas returned a list: expected a dict of tensors by parameter"
    name = "model.layers.0.self_attn.q_proj"
    assert f"{name!r} is no parameter of the model: did you mean {name}." in told({name: torch.zeros(8, 8)})
    assert f"{name}.weight is [8]: expected [8, 8]" in told({f"{name}.weight": torch.zeros(8)})
    assert f"{name}.weight is int: expected [8, 8]" in told({f"{name}.weight": 0})


@pytest.mark.parametrize(
    ("error", "adapter", "status"),
    [
        (ValueError("use_dora = True is not supported"), "dora", REFUSED),
        (NotImplementedError("DoRA"), "dora", REFUSED),
        (RuntimeError("size mismatch"), "dora", UNCLEAR),
        (RuntimeError(f"cannot read {golden_files.FOLDER / 'dora'}"), "dora", UNCLEAR),
        (KeyError("lora_magnitude_vector"), "dora", UNCLEAR),
        (ValueError("scales other than 1"), "plain", UNCLEAR),
    ],
)
def test_a_refusal_is_clear_if_it_names_what_it_does_not_take(error: Exception, adapter: str, status: str) -> None:
    def raises(*_: Any) -> None:
        raise error

    found = judged(loader(load_adapter_deltas=raises), BY_NAME[adapter])
    assert found.status == status
    assert type(error).__name__ in found.message
    wanted = {"dora": "expected dora or lora_magnitude in it", "plain": "every loader must take it"}[adapter]
    assert (wanted in found.message) == (status == UNCLEAR)


def test_a_wrong_result_tells_the_loaders_warning() -> None:
    def warns(*_: Any) -> dict[str, Tensor]:
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        warnings.warn("missing keys\nmore", UserWarning, stacklevel=1)
        sys.stdout.write("noise")
        return {}

    found = judged(loader(load_adapter_deltas=warns), BY_NAME["plain"])
    assert (found.status, found.warned) == (WRONG, "missing keys")
    assert table.sign(found).endswith("!")


def test_a_target_says_which_adapters_it_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def module(**adapters: str) -> None:
        held = ModuleType("my_loader")
        vars(held).update(load_adapter_deltas=dict, CONFORMANCE={"adapters": adapters})
        monkeypatch.setitem(sys.modules, "my_loader", held)

    module(**{"experts*": "no mixtures"})
    found = Loader.load("my_loader")
    assert found.absent == {"experts": "no mixtures", "experts-rslora": "no mixtures"}
    assert judged(found, BY_NAME["experts"]) == Cell(MISSING, message="no mixtures")
    module(dore="no DoRA")
    with pytest.raises(TargetError, match=r"CONFORMANCE\['adapters'\] 'dore'.*did you mean dora"):
        Loader.load("my_loader")
    with pytest.raises(TargetError, match=r"loads no adapters: expected load_adapter_deltas\(model, path\) or load_"):
        Loader.load("conformance.targets.eager")


def test_the_command_passes_a_right_loader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["adapters", "reference", "--report-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "PASS reference: of 29 golden adapters 24 right, 5 refused" in shown
    found = json.loads((tmp_path / "adapters.json").read_text())
    cells = found["loaders"][0]["cells"]
    assert {name for name, held in cells.items() if held["status"] == REFUSED} == REFUSED_BY_US
    assert (tmp_path / "adapters.md").read_text() == table.markdown(table.from_json(found))


def test_the_command_judges_optimized_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--adapter", "dora,experts-rslora", "--adapter", "tied*"]
    assert cli.main(["adapters", "optimized", *chosen, "--json", "--report-dir", str(tmp_path)]) == 0
    (found,) = json.loads(capsys.readouterr().out)["loaders"]
    assert {name: held["status"] for name, held in found["cells"].items()} == dict.fromkeys(
        ("dora", "tied-head", "experts-rslora"), RIGHT
    )


def test_the_exit_code_is_the_highest_of_all_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, made in (("right_loader", right.Loader()), ("wrong_loader", IgnoresRsLoRA())):
        held = ModuleType(name)
        vars(held).update(load_adapter_deltas=made.load_adapter_deltas)
        monkeypatch.setitem(sys.modules, name, held)

    def code(*words: str) -> int:
        return cli.main(["adapters", *words, "-q", "--report-dir", str(tmp_path)])

    assert code("right_loader", "--adapter", "rslora") == 0
    assert code("wrong_loader", "right_loader", "--adapter", "rslora") == 1
    assert code("right_loader", "--adapter", "embedding") == 2  # nothing was loaded
    assert code("right_loader", "no_such_loader", "--adapter", "rslora") == 2


def test_wrong_words_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["adapters", "reference", "--adapter", "rslorra", "--report-dir", str(tmp_path)]) == 2
    assert "unknown golden adapter 'rslorra': did you mean rslora" in capsys.readouterr().err
    assert cli.main(["adapters", "reference", "reference", "--report-dir", str(tmp_path)]) == 2
    assert "reference is given twice: expected each target once" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"unknown base model 'lama': expected one of llama"):
        base_model("lama")


def test_the_committed_table_is_made_from_the_committed_results() -> None:
    found = json.loads((REPORTS / "adapters.json").read_text())
    assert (REPORTS / "ADAPTERS.md").read_text() == table.markdown(table.from_json(found))
    assert set(found["adapters"]) == set(BY_NAME)
    assert not re.search(r"/(?:home|root|tmp|work|Users)/|site-packages", json.dumps(found))
