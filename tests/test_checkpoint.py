"""Saving and loading: this project's own behaviour, which the clauses of group `checkpoint` do not require."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import optimized
import reference
from conformance.clauses.checkpoint.peft_files import CONFIG, REST, TENSORS
from conformance.clauses.checkpoint.target_calls import fill
from conformance.clauses.model.small_models import Toy, Twice
from reference.files.plain_values import flatten, same, unflatten
from reference.files.tensor_file import encode
from reference.files.tensor_names import PREFIX

TOKENS = torch.tensor([[1, 4, 7], [2, 0, 10]])


def toy(implementation: ModuleType = reference, **options: Any) -> tuple[nn.Module, Any]:
    """A small model with non-zero adapters, and its config."""
    torch.manual_seed(0)
    model = Toy(4)
    config = implementation.PeftConfig(**({"dim": 2, "alpha": 6, "target_modules": ["*.fc*"]} | options))
    implementation.apply_lora_to_linear_modules(model, config)
    fill(model, 0)
    return model, config


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize(("one", "other"), [(reference, optimized), (optimized, reference)])
def test_each_package_loads_what_the_other_saved(tmp_path: Path, one: ModuleType, other: ModuleType) -> None:
    model, config = toy(one, use_dora=True, dropout=0.1, lora_A_init="uniform")
    with pytest.warns(UserWarning, match="PEFT applies dropout to x: dropout_position = 'post' is kept"):
        one.save_adapter(model, config, tmp_path / "one")
    torch.manual_seed(0)
    plain = Toy(4)
    assert other.load_adapter(plain, tmp_path / "one") == config
    assert {type(m) for m in plain.modules() if hasattr(m, "lora_A")} == {other.LinearLoRA}
    trainable = {name for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with pytest.warns(UserWarning, match="PEFT applies dropout"):
        other.save_adapter(plain, config, tmp_path / "other")
    assert files(tmp_path / "one") == files(tmp_path / "other")
    torch.testing.assert_close(plain.eval()(TOKENS), model.eval()(TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", [reference, optimized])
def test_a_layer_without_a_model_around_it_is_refused(tmp_path: Path, implementation: ModuleType) -> None:
    layer = implementation.LinearLoRA(nn.Linear(3, 4), dim=2)
    with pytest.raises(ValueError, match="LinearLoRA holds no adapted layer: expected a model with a LinearLoRA in it"):
        implementation.save_adapter(layer, implementation.PeftConfig(match_all_linear=True, dim=2), tmp_path)


def save_both(folder: Path) -> None:
    """Save an adapter and a training run, with every random state fixed."""
    model, config = toy(match_all_linear=True, target_modules=[])
    reference.save_adapter(model, config, folder)
    training = run()
    random.seed(0)
    np.random.seed(0)
    reference.save_training(training, folder, 3)


def run() -> reference.LoraTraining:
    """A training run whose optimizer, scheduler and gradients all hold state."""
    model, _ = toy()
    training = reference.LoraTraining(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], amsgrad=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    training.update_training_parameters(optimizer, scheduler, lambda y, labels: (y - labels).square().mean())
    training.toggle_run_optimizer(True)
    training((TOKENS, torch.ones(2, 3, 5)))
    return training


def test_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    """In another process strings hash differently, so sets and safetensors' maps have another order."""
    script = "import pathlib, sys; from tests import test_checkpoint as t; t.save_both(pathlib.Path(sys.argv[1]))"
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", script, str(tmp_path / "there")]
    subprocess.run(command, env=env, check=True, timeout=900, cwd=Path(__file__).parent.parent)
    save_both(tmp_path / "here")
    assert files(tmp_path / "here") == files(tmp_path / "there")
    assert set(files(tmp_path / "here")) == {CONFIG, TENSORS, REST, "training.safetensors"}


def test_metadata_is_sorted() -> None:
    """safetensors itself writes metadata entries in an order that differs between calls."""
    metadata = {letter: letter for letter in "zyxabc"}
    written = {encode({"t": torch.ones(2)}, metadata) for _ in range(8)}
    assert len(written) == 1
    size = int.from_bytes(next(iter(written))[:8], "little")
    assert size % 8 == 0
    assert list(json.loads(next(iter(written))[8 : 8 + size])["__metadata__"]) == sorted(metadata)


def test_a_config_of_another_save_is_refused(tmp_path: Path) -> None:
    """A process that ends between two renames leaves files of two saves."""
    model, config = toy()
    reference.save_adapter(model, config, tmp_path)
    tensors = (tmp_path / TENSORS).read_bytes()
    other, config = toy(alpha=3)
    reference.save_adapter(other, config, tmp_path)
    (tmp_path / TENSORS).write_bytes(tensors)
    with pytest.raises(ValueError, match=r"was not saved with this adapter_config\.json"):
        reference.load_adapter(other, tmp_path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "alpha": (
        {"alpha": 3},
        r"blocks\.0\.fc1 has alpha = 3 but adapter_config\.json has lora_alpha = 6: expected the same",
    ),
    "dim": ({"dim": 3}, r"blocks\.0\.fc1 has dim = 3 but adapter_config\.json has r = 2"),
    "dora": ({"use_dora": True}, r"blocks\.0\.fc1 has use_dora = True but adapter_config\.json has use_dora = False"),
    "fewer": ({"target_modules": ["*.fc1"]}, r"of modules that have no adapter: blocks\.0\.fc2, blocks\.1\.fc2"),
    "more": ({"target_modules": ["*.fc*", "head"]}, r"no tensors for adapters of the model: head"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_error_names_the_mismatch_between_model_and_file(tmp_path: Path, what: str) -> None:
    options, message = REFUSED[what]
    model, config = toy()
    reference.save_adapter(model, config, tmp_path)
    with pytest.raises(ValueError, match=message):
        reference.load_adapter(toy(**options)[0], tmp_path)


FILES_REFUSED = {
    CONFIG: [
        (b'{"peft_type": "LORA", "r": 2, "r": 3}', "r is given twice"),
        (b'{"peft_type": "LORA", "lora_alpha": NaN}', "NaN is not a JSON number"),
        (b"[" * 10**5, "is not a JSON object"),
        (b"3", "it holds a int"),
        (b'{"r": 2}', "has no peft_type: expected 'LORA'"),
        (b'{"peft_type": "LORA", "a": 1}', "has the unknown field a = 1"),
        (
            b'{"peft_type": "LORA", "rank_pattern": {"a": 0}}',
            "has rank_pattern['a'] = 0: expected an int of at least 1",
        ),
        (b'{"peft_type": "LORA", "r": 0}', "adapter_config.json has r = 0: expected an int of at least 1"),
        (b'{"peft_type": "LORA", "lora_dropout": 2}', "has lora_dropout = 2: expected a probability in [0, 1]"),
        (b'{"peft_type": "LORA", "bias": "lora_only"}', "has bias = 'lora_only': expected one of ('none', None)"),
        (b'{"peft_type": "LORA", "layer_replication": [[0, 1]]}', "layer_replication = [[0, 1]], which is not"),
        (b'{"peft_type": "LORA", "lora_bias": true}', "lora_bias = True, which is not supported"),
        (b'{"peft_type": "LORA", "trainable_token_indices": [1]}', "trainable_token_indices = [1], which is not"),
        (b'{"peft_type": "LORA", "target_parameters": ["gain"]}', "target_parameters = ['gain'], which is not"),
        (
            b'{"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"}',
            "'pissa_niter_4', which changed the base weights",
        ),
        (b'{"peft_type": "LORA", "init_lora_weights": "mica"}', "has init_lora_weights = 'mica': expected one of"),
        (b'{"peft_type": "LORA", "r": 2, "lora_alpha": 1' + b"0" * 400 + b"}", "0: expected a finite number"),
        (b'{"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["fc1"]}', "is not in target_modules"),
        (b'{"peft_type": "LORA", "r": 2, "target_modules": ["fc1", "fc2", "head"]}', "head is in target_modules"),
        (b" " * (2**24 + 1), "expected at most 16777216"),
    ],
    REST: [
        (b'{"dropout": 0.5}', "has lora_dropout = 0.0 but automodel_peft_config.json has dropout = 0.5"),
        (b'{"of_tomorrow": 1}', "automodel_peft_config.json has the unknown field of_tomorrow = 1"),
    ],
    TENSORS: [(b"", "is not a whole safetensors file"), (b"\x80\x04.", "is not a whole safetensors file")],
}


@pytest.mark.parametrize(
    ("file", "data", "message"), [(f, *case) for f, cases in FILES_REFUSED.items() for case in cases]
)
def test_the_error_says_what_is_wrong_with_a_file(tmp_path: Path, file: str, data: bytes, message: str) -> None:
    model, config = toy()
    reference.save_adapter(model, config, tmp_path)
    (tmp_path / file).write_bytes(data)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}: .*{re.escape(message)}"):
        reference.load_adapter(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pickles_pipes_and_broken_links_are_refused(tmp_path: Path) -> None:
    model, config = toy()
    reference.save_adapter(model, config, tmp_path)
    (tmp_path / TENSORS).unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"adapter_model\.bin is a pickle, which could run anything"):
        reference.load_adapter(model, tmp_path)
    os.mkfifo(tmp_path / TENSORS)
    with pytest.raises(ValueError, match="is not a regular file"):
        reference.load_adapter(model, tmp_path)
    (tmp_path / TENSORS).unlink()
    (tmp_path / TENSORS).symlink_to(TENSORS)
    with pytest.raises(ValueError, match="leads nowhere"):
        reference.load_adapter(model, tmp_path)


def test_a_warning_names_trainable_parameters_that_are_not_saved(tmp_path: Path) -> None:
    model, config = toy()
    model.get_parameter("head.weight").requires_grad_(True)
    with pytest.warns(UserWarning, match=r"trainable parameters outside adapters are not saved: head\.weight"):
        reference.save_adapter(model, config, tmp_path)


def test_a_layer_whose_scale_differs_from_the_config_is_refused(tmp_path: Path) -> None:
    model, config = toy()
    next(m for m in model.modules() if isinstance(m, reference.LinearLoRA)).scale = 1.0
    with pytest.raises(ValueError, match=r"blocks\.0\.fc1 has the scale 1\.0: expected 3\.0"):
        reference.save_adapter(model, config, tmp_path)
    assert not list(tmp_path.iterdir())


MAGNITUDE = f"{PREFIX}blocks.0.fc1.lora_magnitude_vector"
TENSORS_REFUSED = {
    "two dtypes": r"blocks\.0\.fc1 has lora_A in torch\.bfloat16 and lora_B in torch\.float32: expected one dtype",
    "no lora_B": rf"no tensor {PREFIX}blocks\.0\.fc1\.lora_B\.weight: use_dora is False",
    "a magnitude": rf"an unexpected tensor {MAGNITUDE}: use_dora is False",
}


@pytest.mark.parametrize("what", TENSORS_REFUSED)
def test_the_error_says_what_is_wrong_with_the_tensors(tmp_path: Path, what: str) -> None:
    model, config = toy()
    reference.save_adapter(model, config, tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    down, up = (f"{PREFIX}blocks.0.fc1.{part}.weight" for part in ("lora_A", "lora_B"))
    if what == "two dtypes":
        tensors[down] = tensors[down].bfloat16()
    elif what == "no lora_B":
        del tensors[up]
    else:
        tensors[MAGNITUDE] = torch.ones(len(tensors[up]))
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(ValueError, match=TENSORS_REFUSED[what]):
        reference.load_adapter(Toy(4), tmp_path)


def test_a_module_with_three_names_is_saved_under_each(tmp_path: Path) -> None:
    model = Twice()
    config = reference.PeftConfig(dim=2, target_modules=["first_proj"])
    reference.apply_lora_to_linear_modules(model, config)
    reference.save_adapter(model, config, tmp_path)
    names = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in load_file(tmp_path / TENSORS)}
    assert names == {name for name, m in model.named_modules(remove_duplicate=False) if hasattr(m, "lora_A")}
    assert len(names) == 3
    other = Twice()
    other.load_state_dict({k: v for k, v in model.state_dict().items() if "lora" not in k})
    reference.load_adapter(other, tmp_path)
    assert other.first_proj is other.inner.third
    assert torch.equal(other(torch.ones(1, 4)), model(torch.ones(1, 4)))


VALUES = [
    {"a": (1, 2.5, None), 1: [True, "x"], "1": {}, "c": Counter({3: 2}), "o": OrderedDict(b=1)},
    {"t": torch.tensor([1.0, float("nan")]), 0: torch.tensor(3), "f": [float("inf"), float("-inf"), 0.1 + 0.2, -0.0]},
    {1: torch.tensor(1), "1": torch.tensor(2)},
    [],
]


@pytest.mark.parametrize("value", VALUES)
def test_values_survive_flatten_and_unflatten(value: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(flatten(value, "v", tensors), allow_nan=False)
    back = unflatten(json.loads(text), tensors)
    assert type(back) is type(value)
    assert same(back, value)
    assert repr(back) == repr(value)


@pytest.mark.parametrize("value", [{"f": len}, {1.5: 1}, {"s": {1, 2}}, [object()], {"b": b"x"}])
def test_values_of_unsupported_types_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"v(\['.'\]|\[0\])? (is a|has the keys)"):
        flatten(value, "v", {})
