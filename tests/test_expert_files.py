"""Adapters on experts in files: PEFT's layout both ways, its reversed one, keys for each expert, and refusals."""

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

transformers = pytest.importorskip("transformers")
PACKAGES = pytest.mark.parametrize("package", [reference, optimized], ids=["reference", "optimized"])
NAMES = {"qwen3_moe": ("gate_up_proj", "down_proj"), "gpt_oss": ("gate_up_proj", "down_proj")}
SIZES = {
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 6,
    "moe_intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "num_experts": 3,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 16,
    "layer_types": ["full_attention"],
}
PREFIX = "base_model.model.model.layers.0.mlp.experts."


def model_of(kind: str, **sizes: int) -> Any:
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **sizes}, pad_token_id=0)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def adapted(package: Any, kind: str, *, ranks: dict[str, int] | None = None, **sizes: int) -> tuple[Any, Any]:
    model = model_of(kind, **sizes)
    targets = [f"experts.{name}" for name in NAMES[kind]]
    config = package.PeftConfig(target_parameters=targets, dim=2, alpha=6, rank_pattern=ranks or {})
    package.apply_lora_to_linear_modules(model, config)
    with torch.no_grad():
        for module in model.modules():
            for B in getattr(module, "lora_B", nn.ParameterDict()).values() if hasattr(module, "scales") else ():
                B.normal_(std=0.3)
    return model, config


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(10).reshape(2, 5)).logits


def rewritten(folder: Path, *, fields: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None) -> None:
    """The files of a folder as another library might have written them: without this library's own."""
    (folder / "automodel_peft_config.json").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (fields or {})))
    path = folder / "adapter_model.safetensors"
    kept = load_file(path) if tensors is None else tensors
    save_file({key: tensor.contiguous() for key, tensor in kept.items()}, path)


@PACKAGES
@pytest.mark.parametrize("kind", NAMES)
def test_peft_reads_what_is_saved(package: Any, kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, config = adapted(package, kind, ranks={"experts.down_proj": 4})
    package.save_adapter(model, config, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(model_of(kind), str(tmp_path))
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-4, atol=1e-4)


@PACKAGES
@pytest.mark.parametrize("kind", NAMES)
def test_files_of_peft_are_read(package: Any, kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    options = {"target_parameters": [f"experts.{name}" for name in NAMES[kind]], "target_modules": ["q_proj"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(model_of(kind), peft.LoraConfig(r=2, lora_alpha=6, **options))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    theirs.save_pretrained(str(tmp_path))
    model = model_of(kind)
    config = package.load_adapter(model, tmp_path)
    assert len(config.target_parameters) == 2
    assert isinstance(model.model.layers[0].mlp.experts, package.GroupedExpertsLoRA)
    torch.testing.assert_close(logits(model), logits(theirs.eval()), rtol=1e-4, atol=1e-4)


@PACKAGES
def test_a_round_trip_keeps_every_bit_and_the_scaled_rank(package: Any, tmp_path: Path) -> None:
    model = model_of("qwen3_moe")
    config = package.PeftConfig(target_parameters=["gate_up_proj", "down_proj"], dim=4, alpha=6, moe_rank_scaling=True)
    package.apply_lora_to_linear_modules(model, config)
    for B in model.model.layers[0].mlp.experts.lora_B.values():
        nn.init.normal_(B)
    package.save_adapter(model, config, tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(fields["rank_pattern"].values()) == {2}
    other = model_of("qwen3_moe")
    loaded = package.load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))
    package.save_adapter(other, loaded, tmp_path / "again")
    assert package.load_adapter(model, tmp_path / "again") == loaded


def reversed_tensors(tensors: dict[str, torch.Tensor], experts: int) -> dict[str, torch.Tensor]:
    """The tensors as PEFT 0.19.0 and older wrote them for weights [E, out, in]: A reads the outputs."""
    found = {}
    for key, A in tensors.items():
        if "lora_A" in key:
            B = tensors[key.replace("lora_A", "lora_B")]
            own = A.reshape(experts, -1, A.shape[1])
            each = B.reshape(B.shape[0], -1, experts).permute(2, 0, 1)
            found[key] = each.mT.reshape(-1, B.shape[0])
            found[key.replace("lora_A", "lora_B")] = own.mT.permute(1, 2, 0).reshape(A.shape[1], -1)
    return found


@PACKAGES
def test_an_older_file_is_turned(package: Any, tmp_path: Path) -> None:
    model, config = adapted(package, "qwen3_moe")
    package.save_adapter(model, config, tmp_path)
    old = reversed_tensors(load_file(tmp_path / "adapter_model.safetensors"), 3)
    rewritten(tmp_path, fields={"peft_version": "0.18.0"}, tensors=old)
    other = model_of("qwen3_moe")
    package.load_adapter(other, tmp_path)
    torch.testing.assert_close(logits(other), logits(model))


@PACKAGES
@pytest.mark.parametrize("version", [None, "0.18.0"])
def test_shapes_decide_whatever_the_version(package: Any, version: Any, tmp_path: Path) -> None:
    model, config = adapted(package, "qwen3_moe")
    package.save_adapter(model, config, tmp_path)
    rewritten(tmp_path, fields={"peft_version": version})
    other = model_of("qwen3_moe")
    package.load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))


@PACKAGES
def test_experts_without_a_model_around_them_are_refused(package: Any, tmp_path: Path) -> None:
    model, config = adapted(package, "qwen3_moe")
    with pytest.raises(ValueError, match="holds no adapted layer: expected a model with a LinearLoRA in it"):
        package.save_adapter(model.model.layers[0].mlp.experts, config, tmp_path)


SQUARE = {"hidden_size": 12, "moe_intermediate_size": 6}  # 2I = H: gate_up is square, and down is not


@PACKAGES
def test_one_unambiguous_projection_decides_for_the_file(package: Any, tmp_path: Path) -> None:
    model, config = adapted(package, "qwen3_moe", **SQUARE)
    package.save_adapter(model, config, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    rewritten(tmp_path, fields={"peft_version": None}, tensors=reversed_tensors(tensors, 3))
    other = model_of("qwen3_moe", **SQUARE)
    package.load_adapter(other, tmp_path)
    torch.testing.assert_close(logits(other), logits(model))


@PACKAGES
@pytest.mark.parametrize("version", [None, "0.19.0", "0.18.1"])
def test_a_layout_that_cannot_be_told_is_refused(package: Any, version: Any, tmp_path: Path) -> None:
    model = model_of("qwen3_moe", **SQUARE)
    config = package.PeftConfig(target_parameters=["gate_up_proj"], dim=2)
    package.apply_lora_to_linear_modules(model, config)
    package.save_adapter(model, config, tmp_path)
    other = model_of("qwen3_moe", **SQUARE)
    rewritten(tmp_path, fields={"peft_version": version})
    with pytest.raises(ValueError, match=r"gate_up_proj may read inputs or outputs.*expected 0.19.1 or later"):
        package.load_adapter(other, tmp_path)
    assert not hasattr(other.model.layers[0].mlp.experts, "lora_A")
    rewritten(tmp_path, fields={"peft_version": "0.19.1"})
    package.load_adapter(other, tmp_path)


@PACKAGES
def test_two_layouts_in_a_file_are_refused(package: Any, tmp_path: Path) -> None:
    model, config = adapted(package, "qwen3_moe")
    package.save_adapter(model, config, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    old = {k: t for k, t in reversed_tensors(tensors, 3).items() if "base_layer" in k}
    rewritten(tmp_path, tensors=tensors | old)
    with pytest.raises(ValueError, match=r"reads inputs, that of .* reads outputs: expected one layout in a file"):
        package.load_adapter(model_of("qwen3_moe"), tmp_path)


def of_each_expert(*, one_A: bool) -> dict[str, torch.Tensor]:
    """The adapters of a module under keys for each expert."""
    found = {}
    for e in range(3):
        for name, side in (("gate_proj", 0), ("up_proj", 1), ("down_proj", 2)):
            shape = (8, 6) if name == "down_proj" else (6, 8)
            generator = torch.Generator().manual_seed(10 * e + (0 if one_A and side < 2 else side))
            found[f"{PREFIX}{e}.{name}.lora_A.weight"] = torch.randn(2, shape[1], generator=generator)
            found[f"{PREFIX}{e}.{name}.lora_B.weight"] = torch.randn(shape[0], 2) * 0.3
    return found


@PACKAGES
@pytest.mark.parametrize("one_A", [True, False], ids=["one A", "two A"])
@pytest.mark.parametrize("kind", NAMES)
def test_keys_of_each_expert_are_fused(package: Any, one_A: bool, kind: str, tmp_path: Path) -> None:
    model, config = adapted(package, kind)
    package.save_adapter(model, config, tmp_path)
    tensors = of_each_expert(one_A=one_A)
    rewritten(tmp_path, fields={"target_parameters": None, "rank_pattern": {}}, tensors=tensors)
    other = model_of(kind)
    package.load_adapter(other, tmp_path)
    experts: Any = other.model.layers[0].mlp.experts
    assert experts.lora_A["gate_up_proj"].shape[1] == (2 if one_A else 4)
    for e in range(3):
        update = (experts.scales["gate_up_proj"] * experts.lora_B["gate_up_proj"] @ experts.lora_A["gate_up_proj"])[e]
        halves = (update[:6], update[6:]) if kind == "qwen3_moe" else (update[::2], update[1::2])
        for half, name in zip(halves, ("gate_proj", "up_proj"), strict=True):
            A, B = (tensors[f"{PREFIX}{e}.{name}.lora_{side}.weight"] for side in "AB")
            torch.testing.assert_close(half, 3.0 * B @ A)


@PACKAGES
@pytest.mark.parametrize("missing", ["1.gate_proj", "2.down_proj"])
def test_a_missing_expert_is_named(package: Any, missing: str, tmp_path: Path) -> None:
    model, config = adapted(package, "qwen3_moe")
    package.save_adapter(model, config, tmp_path)
    tensors = {k: t for k, t in of_each_expert(one_A=True).items() if missing not in k}
    rewritten(tmp_path, fields={"target_parameters": None}, tensors=tensors)
    other = model_of("qwen3_moe")
    with pytest.raises(ValueError, match=rf"no tensors .*experts\.{missing}.*expected those of all 3 experts"):
        package.load_adapter(other, tmp_path)
    assert not hasattr(other.model.layers[0].mlp.experts, "lora_A")


@PACKAGES
def test_tensors_that_do_not_fit_are_refused_before_anything_changes(package: Any, tmp_path: Path) -> None:
    model, config = adapted(package, "qwen3_moe")
    package.save_adapter(model, config, tmp_path)
    before = copy.deepcopy(model.state_dict())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = f"{PREFIX}lora_B.weight"
    for changed, message in (
        ({key: tensors[key][:, :-1]}, r"down_proj: lora_A is \[6, 6\] and lora_B is \[8, 5\]: expected \[r·3, 6\]"),
        (
            {f"{PREFIX}base_layer.lora_A.weight": None},
            "no tensor .*base_layer.lora_A.weight: expected lora_A and lora_B",
        ),
        ({f"{PREFIX}base_layer.lora_{side}.weight": None for side in "AB"}, "has 1 adapters in the file, but"),
    ):
        kept = {k: t for k, t in (tensors | changed).items() if t is not None}
        rewritten(tmp_path, tensors=kept)
        with pytest.raises(ValueError, match=message):
            package.load_adapter(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@PACKAGES
def test_what_is_saved_must_be_the_configs(package: Any, tmp_path: Path) -> None:
    model, config = adapted(package, "qwen3_moe")
    config.dim = 4
    with pytest.raises(ValueError, match=r"gate_up_proj has the rank 2 and the scale 3.0: expected 4 and 1.5, from"):
        package.save_adapter(model, config, tmp_path)


@PACKAGES
def test_dropout_of_experts_is_kept_for_this_library(package: Any, tmp_path: Path) -> None:
    model = model_of("qwen3_moe")
    config = package.PeftConfig(target_parameters=["down_proj"], dropout=0.25, dropout_position="pre")
    package.apply_lora_to_linear_modules(model, config)
    with pytest.warns(UserWarning, match="PEFT has no dropout for experts: dropout = 0.25 is kept"):
        package.save_adapter(model, config, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_dropout"] == 0.0
    assert package.load_adapter(model_of("qwen3_moe"), tmp_path).dropout == 0.25
