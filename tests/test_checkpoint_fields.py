"""The fields and tensors that files of PEFT may have: patterns, initialisations, fields without effect, copies."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import optimized
import reference
from conformance.clauses.checkpoint.peft_files import CONFIG, TENSORS
from conformance.clauses.checkpoint.target_calls import fill
from conformance.clauses.model.small_models import Toy
from reference.files.tensor_names import PREFIX
from reference.layer_patterns import first_match
from tests.test_checkpoint import toy

TOKENS = torch.tensor([[1, 4, 7], [2, 0, 10]])
RANKS = {r"blocks\.0\..*": 5, "fc1": 2, "^head": 1}
ALPHAS = {"q_proj|head": 7, "nothing": 3}


@pytest.fixture
def peft() -> Iterator[Any]:
    """PEFT, without its warnings about the environment."""
    module = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield module


@torch.no_grad()
def output(model: Any) -> Tensor:
    y: Tensor = model.eval()(TOKENS)
    return y


def off(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("use_rslora", [False, True])
def test_patterns_mean_the_same_to_peft_in_both_directions(tmp_path: Path, peft: Any, use_rslora: bool) -> None:
    torch.manual_seed(0)
    plain = Toy(8).double()
    targets = ["fc1", "q_proj", "head"]
    given = {"rank_pattern": RANKS, "alpha_pattern": ALPHAS, "use_rslora": use_rslora}
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, **given)
    theirs = peft.get_peft_model(copy.deepcopy(plain), config, autocast_adapter_dtype=False)
    theirs.save_pretrained(tmp_path / "theirs")
    model = copy.deepcopy(plain)
    back = optimized.load_adapter(model, tmp_path / "theirs")
    assert (back.rank_pattern, back.alpha_pattern) == (RANKS, ALPHAS)
    assert off(output(model), output(theirs)) <= 1e-14
    assert off(output(model), output(plain)) > 0.1
    optimized.save_adapter(model, back, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "ours")
    assert off(output(again), output(model)) <= 1e-14
    # a model adapted with the returned config has the same ranks
    other = copy.deepcopy(plain)
    reference.apply_lora_to_linear_modules(other, back)
    reference.load_adapter(other, tmp_path / "ours")
    assert off(output(other), output(model)) <= 1e-14


def test_patterns_whose_order_counts_are_saved_layer_by_layer(tmp_path: Path) -> None:
    """A file sorts its fields, and the first pattern that matches counts."""
    patterns = {"q_proj": 3, r"blocks\.0\..*": 1}
    model, config = toy(target_modules=["q_proj"], rank_pattern=patterns)
    assert [m.dim for m in model.modules() if isinstance(m, reference.LinearLoRA)] == [3, 3]
    reference.save_adapter(model, config, tmp_path)
    written = json.loads((tmp_path / CONFIG).read_text())["rank_pattern"]
    assert written == {r"^blocks\.0\.q_proj": 3, r"^blocks\.1\.q_proj": 3}
    torch.manual_seed(0)
    other = Toy(4)
    reference.load_adapter(other, tmp_path)
    assert torch.equal(output(other), output(model))


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("fc1", "blocks.0.fc1", True),
        ("fc1", "blocks.0.xfc1", False),
        (r"0\.fc1", "blocks.10.fc1", False),
        ("^fc1", "inner.fc1", False),
        ("^fc1", "fc1", True),
        (r".*\.layers\.[0-4]\..*(q|k)_proj$", "model.layers.3.attn.q_proj", True),
    ],
)
def test_a_pattern_matches_the_end_of_a_name_after_a_dot(pattern: str, name: str, matches: bool) -> None:
    assert (first_match([pattern], name) is not None) is matches


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|b)*", "a*a*a*a*", "(?:a)", "x" * 501, "(a){9}"])
def test_a_pattern_that_may_take_long_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"rank_pattern has the pattern .* which may take long to match"):
        reference.PeftConfig(rank_pattern={pattern: 2})


def test_a_pattern_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha_pattern has '\\(', which is no regular expression"):
        reference.PeftConfig(alpha_pattern={"(": 2})
    with pytest.raises(ValueError, match="rank_pattern = 'fc1': expected a dict"):
        reference.PeftConfig(rank_pattern="fc1")  # type: ignore[arg-type]
    assert reference.PeftConfig(alpha_pattern={r"[*+{]\*\{": 2.5}).alpha_pattern == {r"[*+{]\*\{": 2.5}


LOADABLE: dict[str, dict[str, Any]] = {
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "eva": {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
    "no initialisation": {"init_lora_weights": False, "loftq_config": {"loftq_bits": 4}},
    "Megatron's": {"megatron_config": {"a": 1}, "megatron_core": "megatron.core"},
    "tying": {"ensure_weight_tying": True, "fan_in_fan_out": True, "corda_config": {"verbose": True}},
    "empty": {"rank_pattern": None, "alpha_pattern": {}, "modules_to_save": []},
}


@pytest.mark.parametrize("what", LOADABLE)
def test_fields_without_effect_do_not_stop_a_load(tmp_path: Path, what: str) -> None:
    model, config = toy()
    reference.save_adapter(model, config, tmp_path)
    write_fields(tmp_path, LOADABLE[what])
    torch.manual_seed(0)
    plain = Toy(4)
    reference.load_adapter(plain, tmp_path)
    assert torch.equal(output(plain), output(model))


def write_fields(folder: Path, fields: dict[str, Any]) -> None:
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(values | fields))


@pytest.mark.parametrize("method", ["gaussian", "orthogonal", "eva"])
def test_what_peft_initialised_loads_as_peft_computes_it(tmp_path: Path, peft: Any, method: str) -> None:
    torch.manual_seed(0)
    plain = Toy(8)
    config = peft.LoraConfig(r=2, target_modules=["fc1"], init_lora_weights=method)
    theirs = peft.get_peft_model(copy.deepcopy(plain), config)
    fill_theirs(theirs)
    theirs.save_pretrained(tmp_path)
    model = copy.deepcopy(plain)
    reference.load_adapter(model, tmp_path)
    assert off(output(model), output(theirs)) < 1e-6
    assert off(output(model), output(plain)) > 0.01


def fill_theirs(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)


def test_an_unknown_field_loads_if_the_caller_names_it(tmp_path: Path) -> None:
    model, config = toy()
    reference.save_adapter(model, config, tmp_path)
    write_fields(tmp_path, {"lora_alhpa": 3, "of_tomorrow": {"a": 1}})
    with pytest.raises(
        ValueError, match=r"unknown field lora_alhpa = 3: .*; did you mean lora_alpha\?; load_adapter\("
    ):
        reference.load_adapter(model, tmp_path)
    with pytest.raises(ValueError, match=r"of_tomorrow = {'a': 1}: its effect is unknown; load_adapter\(…, ignored_f"):
        reference.load_adapter(model, tmp_path, ignored_fields=["lora_alhpa"])
    assert optimized.load_adapter(model, tmp_path, ignored_fields=("lora_alhpa", "of_tomorrow")) == config
    with pytest.raises(ValueError, match="ignored_fields has 'lora_bias', whose effect is known"):
        reference.load_adapter(model, tmp_path, ignored_fields=["lora_bias"])
    with pytest.raises(ValueError, match="ignored_fields = 'of_tomorrow': expected a list of names"):
        reference.load_adapter(model, tmp_path, ignored_fields="of_tomorrow")


NAMED: dict[str, tuple[str, str]] = {
    "lora_A.default": ("blocks.0.fc1.lora_A.default.weight", "it has the name of an adapter after lora_A"),
    "embedding": ("embed.lora_embedding_A", "it belongs to the adapter of an embedding, which is not supported"),
    "bias": ("blocks.0.fc1.lora_B.bias", r"it is the bias of an adapter \(lora_bias\)"),
    "tokens": ("embed.token_adapter.trainable_tokens_delta", "trainable_token_indices, which are not supported"),
    "nothing": ("nowhere.weight", "or, if PEFT copied it from the base model, the name of a parameter of this model"),
}


@pytest.mark.parametrize("what", NAMED)
def test_the_error_says_what_an_unexpected_tensor_is(tmp_path: Path, what: str) -> None:
    name, message = NAMED[what]
    model, config = toy()
    reference.save_adapter(model, config, tmp_path)
    add(tmp_path, {PREFIX + name: torch.ones(2, 4)})
    with pytest.raises(ValueError, match=f"unexpected tensor {PREFIX}{name}: .*{message}"):
        reference.load_adapter(model, tmp_path)


def add(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(load_file(folder / TENSORS) | tensors, folder / TENSORS)


def test_copies_of_the_base_load_if_the_model_has_the_same_values(tmp_path: Path) -> None:
    model, config = toy()
    reference.save_adapter(model, config, tmp_path)
    embedding, head = model.embed.weight.detach(), model.head.weight.detach()
    add(tmp_path, {f"{PREFIX}embed.weight": embedding, f"{PREFIX}head.base_layer.weight": head})
    reference.load_adapter(model, tmp_path)
    add(tmp_path, {f"{PREFIX}embed.weight": embedding + 1})
    with pytest.raises(
        ValueError, match=r"a copy of embed\.weight, which is the base model's .* differs from the model"
    ):
        reference.load_adapter(model, tmp_path)
    add(tmp_path, {f"{PREFIX}embed.weight": torch.ones(13, 4)})
    with pytest.raises(ValueError, match=r"it is \[13, 4\] and the model's is \[11, 4\]; resize the model's first"):
        reference.load_adapter(model, tmp_path)


def test_a_missing_prefix_is_named(tmp_path: Path) -> None:
    model, config = toy()
    reference.save_adapter(model, config, tmp_path / "inner")
    whole = nn.ModuleDict({"model": Toy(4)})
    message = r"does not have: .*: the file's names lack the prefix model\. of this model; load it into model\.model"
    with pytest.raises(ValueError, match=message):
        reference.load_adapter(whole, tmp_path / "inner")
    outer = nn.ModuleDict({"model": model})
    reference.save_adapter(outer, config, tmp_path / "outer")
    with pytest.raises(ValueError, match=r"the file's names have the prefix model\., which this model's lack"):
        reference.load_adapter(Toy(4), tmp_path / "outer")
    tensors = {name.removeprefix(PREFIX): t for name, t in load_file(tmp_path / "inner" / TENSORS).items()}
    save_file(tensors, tmp_path / "inner" / TENSORS)
    with pytest.raises(ValueError, match=rf"it lacks PEFT's prefix: expected {PREFIX}blocks\.0\.fc1\.lora_A\.weight"):
        reference.load_adapter(model, tmp_path / "inner")


@pytest.mark.parametrize("how", ["plain", "adapted", "frozen adapters", "trainable head", "half"])
def test_exactly_the_adapters_are_trainable_after_loading(tmp_path: Path, how: str) -> None:
    model, config = toy(use_dora=True)
    reference.save_adapter(model, config, tmp_path)
    torch.manual_seed(0)
    other = Toy(4) if how in ("plain", "half") else toy(use_dora=True)[0]
    if how == "half":
        other.bfloat16()
    for name, parameter in other.named_parameters():
        if how == "frozen adapters" or (how == "trainable head" and "head" in name):
            parameter.requires_grad_("head" in name)
    reference.load_adapter(other, tmp_path)
    trainable = {name for name, parameter in other.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in other.named_parameters() if "lora_" in name}
    assert trainable


def test_a_tied_head_is_saved_and_loaded_without_its_twin(tmp_path: Path) -> None:
    """The adapter of a head that is tied to the embeddings is the head's alone."""
    torch.manual_seed(0)
    model, config = Toy(5), reference.PeftConfig(dim=2, target_modules=["head.*"])
    model.head = nn.Linear(5, 11, bias=False)
    model.head.weight = model.embed.weight
    plain = copy.deepcopy(model)
    reference.apply_lora_to_linear_modules(model, config)
    fill(model, 0)
    reference.save_adapter(model, config, tmp_path)
    assert set(load_file(tmp_path / TENSORS)) == {f"{PREFIX}head.lora_{letter}.weight" for letter in "AB"}
    reference.load_adapter(plain, tmp_path)
    assert plain.head.weight is plain.embed.weight
    assert torch.equal(output(plain), output(model))
