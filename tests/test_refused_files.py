"""Files that are refused: not what they should be, damaged, or in contradiction to themselves or to the model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import reference
from reference.encrypted.envelope import EncryptionError
from reference.files import tensor_file


def link_to_itself(path: Path) -> None:
    os.symlink(path, path)


def of_keys(secret: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        reference.Keys(b"secret", b"evaluation").save(path)
        path.write_bytes(path.read_bytes().replace(b"secret", secret))

    return write


FILES: list[tuple[Callable[[Path], Any], Callable[[Path], Any], type[Exception], str]] = [
    (lambda path: path.write_text("["), tensor_file.read_json, ValueError, "it is not a JSON object: Expecting value"),
    (
        lambda path: path.write_text("[1]"),
        tensor_file.read_json,
        ValueError,
        "it is not a JSON object: it holds a list",
    ),
    (link_to_itself, lambda path: tensor_file.file_in(path.parent, "it"), ValueError, "it leads nowhere"),
    (Path.mkdir, lambda path: tensor_file.file_in(path.parent, "it"), ValueError, "it is not a regular file"),
    (lambda path: path.write_bytes(b"keys?"), reference.Keys.load, EncryptionError, "it is not a file of keys"),
    (of_keys(b"sEcret"), reference.Keys.load, EncryptionError, "it is damaged: its checksum is wrong"),
]


@pytest.mark.parametrize(("write", "read", "kind", "says"), FILES, ids=[says for *_, says in FILES])
def test_a_file_is_refused_with_what_it_is(write: Any, read: Any, kind: Any, says: str, tmp_path: Path) -> None:
    write(tmp_path / "it")
    if (tmp_path / "it").is_file():
        (tmp_path / "it").chmod(0o600)
    with pytest.raises(kind) as refused:
        read(tmp_path / "it")
    assert says in str(refused.value)


def changed_files(
    folder: Path, targets: Any, tensors: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Any:
    """Save the adapter of a model with a layer under two names, change the files, and return a model to load into."""

    def model() -> Any:
        found = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        found.add_module("again", found[0])
        return found

    saved, config = model(), reference.PeftConfig(target_modules=["0"], dim=2)
    reference.apply_lora_to_linear_modules(saved, config)
    reference.save_adapter(saved, config, folder)
    (folder / "automodel_peft_config.json").unlink()
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": targets}))
    path = folder / "adapter_model.safetensors"
    safetensors.torch.save_file(tensors(safetensors.torch.load_file(path)), path)
    return model()


@pytest.mark.parametrize(
    ("targets", "tensors", "says"),
    [
        (3, dict, "adapter_config.json has target_modules = 3: expected a list of strings"),
        (["0", "again", "1"], dict, "1 is in target_modules = ['0', 'again', '1'] but has no tensors"),
        (
            ["0", "again"],
            lambda held: held | {key: held[key] + 1 for key in held if "again" in key},
            "are one module of the model but have different tensors",
        ),
    ],
)
def test_files_that_contradict_themselves_or_the_model_are_refused(
    targets: Any, tensors: Any, says: str, tmp_path: Path
) -> None:
    model = changed_files(tmp_path, targets, tensors)
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        reference.load_adapter(model, tmp_path)
    assert says in str(refused.value)


def test_values_that_overflow_in_an_adapted_model_are_refused(tmp_path: Path) -> None:
    model = changed_files(tmp_path, ["0", "again"], lambda held: {k: t.double().add(1e300) for k, t in held.items()})
    reference.apply_lora_to_linear_modules(model, reference.PeftConfig(target_modules=["0"], dim=2))
    with pytest.raises(ValueError, match=r"lora_A.weight has values up to 1e\+300: too large for torch.float32"):
        reference.load_adapter(model, tmp_path)
