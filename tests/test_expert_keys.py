"""Adapters on experts under keys for each expert: saved, read by PEFT and by this library, and their ranks."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import optimized
import reference
from conformance.clauses.experts.small_experts import MixtureModel

PACKAGES = pytest.mark.parametrize("package", [reference, optimized], ids=["reference", "optimized"])
KINDS = pytest.mark.parametrize("kind", ["gated", "interleaved", "ungated"])
NAME = "layers.1.mlp.experts"
KEY = f"base_model.model.{NAME}"


def adapted(package: Any, kind: str, **options: Any) -> tuple[Any, Any]:
    model = MixtureModel(kind)
    chosen = [f"experts.{name}" for name in model.names()]
    config = package.PeftConfig(**({"target_parameters": chosen, "dim": 2, "alpha": 6} | options))
    package.apply_lora_to_linear_modules(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model, config


def updates(model: Any) -> dict[str, torch.Tensor]:
    """The update s·B_e A_e of each projection of the second layer's experts."""
    module = model.layers[1].mlp.experts
    return {name: module.scales[name] * module.lora_B[name] @ A for name, A in module.lora_A.items()}


def same(one: Any, other: Any) -> None:
    left, right = updates(one), updates(other)
    assert left.keys() == right.keys()
    for name, update in left.items():
        torch.testing.assert_close(right[name], update)


def plain(kind: str, like: Any) -> Any:
    """The model without its adapters."""
    model = MixtureModel(kind)
    model.load_state_dict({k: v for k, v in like.state_dict().items() if "lora" not in k}, strict=True)
    return model


@PACKAGES
@KINDS
@pytest.mark.parametrize("expert_keys", ["gate_up_down", "w1_w3_w2"])
def test_saved_keys_hold_each_expert_and_are_read_again(
    package: Any, kind: str, expert_keys: str, tmp_path: Path
) -> None:
    model, config = adapted(package, kind)
    package.save_adapter(model, config, tmp_path, expert_keys=expert_keys)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    gate, up, down = ("gate_proj", "up_proj", "down_proj") if expert_keys == "gate_up_down" else ("w1", "w3", "w2")
    first, _ = model.names()
    for e in range(3):
        found = {
            key: 3.0 * tensors[f"{KEY}.{e}.{key}.lora_B.weight"] @ A
            for key in (gate, up, down)
            if (A := tensors.get(f"{KEY}.{e}.{key}.lora_A.weight")) is not None
        }
        whole = updates(model)[first][e]
        halves = {"gated": (whole[:6], whole[6:]), "interleaved": (whole[::2], whole[1::2])}.get(kind)
        torch.testing.assert_close(found[down], updates(model)["down_proj"][e])
        for key, half in zip((gate, up), halves or (), strict=bool(halves)):
            torch.testing.assert_close(found[key], half)
        if kind == "ungated":
            torch.testing.assert_close(found["up_proj" if expert_keys == "gate_up_down" else "w1"], whole)
    other = plain(kind, model)
    package.load_adapter(other, tmp_path)
    assert other.layers[1].mlp.experts.lora_A[first].shape[1] == 2, "equal A of gate and up fuse at their rank"
    same(model, other)


class LinearExpert(nn.Module):
    """One expert of three linear modules, as transformers 4 had it."""

    def __init__(self, module: Any, e: int) -> None:
        super().__init__()
        gate_up, down = (w[e].mT if module.is_transposed else w[e] for w in (module.gate_up_proj, module.down_proj))
        halves = gate_up.chunk(2) if module.is_concatenated else (gate_up[::2], gate_up[1::2])
        for name, weight in zip(("gate_proj", "up_proj", "down_proj"), (*halves, down), strict=True):
            linear = nn.Linear(*reversed(weight.shape), bias=False)
            linear.weight = nn.Parameter(weight.detach().clone())
            setattr(self, name, linear)


@pytest.mark.parametrize("kind", ["gated", "interleaved"])
def test_peft_reads_keys_of_each_expert(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, config = adapted(reference, kind, rank_pattern={"down_proj": 1}, alpha_pattern={"experts.down_proj": 5})
    linear = MixtureModel(kind)
    for place, layer in enumerate(linear.layers):
        own = model.layers[place].mlp.experts
        layer.mlp.experts = nn.ModuleList(LinearExpert(own, e) for e in range(3))
    reference.save_adapter(model, config, tmp_path, expert_keys="gate_up_down")
    linear.config = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(linear, str(tmp_path))
    experts = theirs.base_model.model.layers[1].mlp.experts
    for e in range(3):
        delta = [experts[e].get_submodule(n).get_delta_weight("default") for n in ("gate_proj", "up_proj", "down_proj")]
        whole = updates(model)["gate_up_proj"][e]
        halves = (whole[:6], whole[6:]) if kind == "gated" else (whole[::2], whole[1::2])
        for found, wanted in zip(delta, (*halves, updates(model)["down_proj"][e]), strict=True):
            torch.testing.assert_close(found, wanted)
    assert not hasattr(theirs.base_model.model.layers[1].mlp.shared_expert, "lora_A")


@PACKAGES
@pytest.mark.parametrize("expert_keys", ["packed", "gate_up_down"])
@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"experts.down_proj": 4}, "alpha_pattern": {"gate_up_proj": 9}},
        {"rank_pattern": {r"(.*)\.down_proj": 4}, "dim": 6, "moe_rank_scaling": True},
        {"rank_pattern": {"down_proj": 4}, "target_modules": ["q_proj"], "use_rslora": True},
    ],
    ids=["by name", "sorted before the exact pattern", "beside a linear layer"],
)
def test_ranks_and_alphas_are_in_the_file(
    package: Any, expert_keys: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, config = adapted(package, "gated", **options)
    package.save_adapter(model, config, tmp_path, expert_keys=expert_keys)
    other = plain("gated", model)
    loaded = package.load_adapter(other, tmp_path)
    same(model, other)
    third = plain("gated", model)
    package.apply_lora_to_linear_modules(third, loaded)
    assert {n: p.shape for n, p in third.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert third.layers[1].mlp.experts.scales == model.layers[1].mlp.experts.scales
    package.save_adapter(other, loaded, tmp_path / "again", expert_keys=expert_keys)
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text()) == json.loads(
        (tmp_path / "adapter_config.json").read_text()
    )


def put(folder: Path, tensors: dict[str, torch.Tensor], **fields: Any) -> None:
    """Write an adapter of another library."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, **fields}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")


def of_each(ranks: dict[str, int], experts: int = 3) -> dict[str, torch.Tensor]:
    """The adapters of the second layer's experts, with a rank for each key."""
    found = {}
    for e in range(experts):
        for key, r in ranks.items():
            k, n = (6, 4) if key == "down_proj" else (4, 6)
            found[f"{KEY}.{e}.{key}.lora_A.weight"] = torch.randn(r, k)
            found[f"{KEY}.{e}.{key}.lora_B.weight"] = torch.randn(n, r)
    return found


@PACKAGES
@pytest.mark.parametrize("rslora", [False, True])
def test_gate_and_up_of_other_ranks_fuse_at_one_scale(package: Any, rslora: bool, tmp_path: Path) -> None:
    tensors = of_each({"gate_proj": 1, "up_proj": 4})
    fields = {"rank_pattern": {"gate_proj": 1, "up_proj": 4}, "alpha_pattern": {"gate_proj": 3, "up_proj": 12}}
    if rslora:
        fields["alpha_pattern"] = {"gate_proj": 3, "up_proj": 6}
    put(tmp_path, tensors, use_rslora=rslora, **fields)
    model = MixtureModel("gated")
    config = package.load_adapter(model, tmp_path)
    for e, update in enumerate(updates(model)["gate_up_proj"]):
        for key, half in (("gate_proj", update[:6]), ("up_proj", update[6:])):
            A, B = (tensors[f"{KEY}.{e}.{key}.lora_{side}.weight"] for side in "AB")
            torch.testing.assert_close(half, 3.0 * B @ A)
    assert config.target_parameters == [f"{NAME}.gate_up_proj"]
    assert config.of_layer(f"{NAME}.gate_up_proj")[0] == 5


@PACKAGES
@pytest.mark.parametrize(
    ("ranks", "fields", "message"),
    [
        ({"gate_proj": 2, "up_proj": 2}, {"alpha_pattern": {"up_proj": 7}}, "gate has the scale 3 and up 3.5: expect"),
        (
            {"down_proj": 3},
            {},
            r"0.down_proj has A \[3, 6\] and B \[4, 3\]: expected \[2, 6\] and \[4, 2\], with r = 2",
        ),
        ({"down_proj": 2}, {"alpha_pattern": {r"1\.down_proj": 1}}, r"\(2, 6\) and .*1.down_proj has \(2, 1\): expec"),
        ({"gate_proj": 2}, {}, "no tensors .*experts.0.up_proj or w3: expected those of all 3 experts"),
    ],
    ids=["other scales", "another rank", "one expert", "a half"],
)
def test_keys_that_do_not_fuse_are_refused(
    package: Any, ranks: dict[str, int], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    put(tmp_path, of_each(ranks), **fields)
    model = MixtureModel("gated")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        package.load_adapter(model, tmp_path)
    assert model.state_dict().keys() == before.keys()


@PACKAGES
def test_an_expert_that_the_model_lacks_is_refused(package: Any, tmp_path: Path) -> None:
    put(tmp_path, of_each({"down_proj": 2}, experts=4))
    with pytest.raises(ValueError, match=r"experts has tensors of expert 3: expected experts 0 to 2"):
        package.load_adapter(MixtureModel("gated"), tmp_path)


@PACKAGES
def test_other_expert_keys_are_refused_before_a_file_is_written(package: Any, tmp_path: Path) -> None:
    model, config = adapted(package, "gated")
    with pytest.raises(
        ValueError, match=r"expert_keys = 'w1_w2_w3': expected one of packed, .*did you mean 'w1_w3_w2'"
    ):
        package.save_adapter(model, config, tmp_path / "new", expert_keys="w1_w2_w3")
    assert not (tmp_path / "new").exists()
