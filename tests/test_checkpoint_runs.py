"""Training runs on disk: runs that cannot be saved, and intact files that do not fit this training."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference
from conformance.clauses.checkpoint.peft_files import TENSORS
from reference.files.plain_values import flatten, same, unflatten
from reference.files.tensor_file import decode, digest, encode
from reference.files.training_file import ABOUT, DIGEST, STATE
from tests.test_checkpoint import run, toy


def test_runs_that_cannot_be_saved_are_refused(tmp_path: Path) -> None:
    training = run()
    with pytest.raises(ValueError, match="step = -1: expected an int of at least 0"):
        reference.save_training(training, tmp_path, -1)
    training.lr_scheduler = object()
    with pytest.raises(ValueError, match="the lr_scheduler, a object, has no state_dict"):
        reference.save_training(training, tmp_path)
    training.lr_scheduler = None
    training.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(ValueError, match="the optimizer has a parameter that is not the model's"):
        reference.save_training(training, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_optimizer_that_loads_another_state_is_restored(tmp_path: Path) -> None:
    reference.save_training(run(), tmp_path)
    training = run()
    before = copy.deepcopy(training.optimizer.state_dict())
    load = training.optimizer.load_state_dict

    def another(state: dict[str, Any]) -> None:
        training.optimizer.load_state_dict = load
        load(state)
        training.optimizer.param_groups[0]["lr"] = 1.0

    training.optimizer.load_state_dict = another
    with pytest.raises(ValueError, match="the optimizer does not reproduce the saved state"):
        reference.load_training(training, tmp_path)
    assert same(training.optimizer.state_dict(), before)


def test_an_adapter_file_is_refused_as_a_run(tmp_path: Path) -> None:
    model, config = toy()
    reference.save_adapter(model, config, tmp_path)
    (tmp_path / TENSORS).rename(tmp_path / "training.safetensors")
    with pytest.raises(ValueError, match="its metadata has no loraspec_training: expected a file of save_training"):
        reference.load_training(run(), tmp_path)


def write(folder: Path, about: Any, tensors: dict[str, Tensor]) -> None:
    """Write a run's file with the right digest of its contents."""
    (folder / STATE).write_bytes(encode(tensors, {ABOUT: json.dumps(about), DIGEST: digest(tensors, about)}))


def everything(training: reference.LoraTraining) -> dict[str, Any]:
    """All the state that loading may change."""
    model = training.inference_model
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "optimizer": copy.deepcopy(training.optimizer.state_dict()),
        "lr_scheduler": copy.deepcopy(training.lr_scheduler.state_dict()),
        "settings": [training.gradient_accumulation_steps, training.max_grad_norm, training.run_optimizer],
        "python": random.getstate(),
        "numpy": [part if isinstance(part, int | float | str) else part.tolist() for part in np.random.get_state()],
        "torch": torch.get_rng_state(),
    }


def without(*path: str) -> Callable[[Any], None]:
    def change(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


def with_value(*path: Any) -> Callable[[Any], None]:
    def change(state: Any) -> None:
        for key in path[:-2]:
            state = state[key]
        state[path[-2]] = path[-1]

    return change


A = "blocks.0.fc1.lora_A.weight"
BROKEN: dict[str, tuple[Callable[[Any], None], str]] = {
    "no settings": (without("settings"), r"the state: unexpected \[\], missing \['settings'\]"),
    "no kind": (without("optimizer kind"), r"missing \['optimizer kind'\]"),
    "no optimizer": (without("optimizer"), r"missing \['optimizer'\]"),
    "no random states": (without("random"), r"missing \['random'\]"),
    "no step": (without("step"), r"missing \['step'\]"),
    "another step": (with_value("step", "3"), "step = '3': expected an int of at least 0"),
    "of tomorrow": (with_value("tomorrow", 1), r"the state: unexpected \['tomorrow'\]"),
    "no max_grad_norm": (without("settings", "max_grad_norm"), r"the settings: .* missing \['max_grad_norm'\]"),
    "no window": (with_value("settings", "gradient_accumulation_steps", 0), "gradient_accumulation_steps = 0"),
    "a norm in words": (with_value("settings", "max_grad_norm", "one"), "its max_grad_norm is not a number"),
    "a switch in words": (with_value("settings", "calibrate", "no"), "calibrate = 'no': expected True or False"),
    "no list of settings": (with_value("settings", []), "the settings: got a list, expected a dict"),
    "no buffers": (without("model", "buffers"), r"the model: unexpected \[\], missing \['buffers'\]"),
    "no parameter": (without("model", "parameters", A), rf"the model's parameters: .* missing \['{A}'\]"),
    "a number": (with_value("model", "parameters", A, 1), f"{A} is a int: expected a tensor"),
    "another shape": (with_value("model", "parameters", A, torch.ones(2)), rf"{A} is torch.float32 \[2\]: the model"),
    "a gradient's shape": (
        with_value("model", "gradients", A, torch.ones(3, 4)),
        rf"the gradient of {A} is torch.float32 \[3, 4\]: the model has torch.float32 \[2, 4\]",
    ),
    "a gradient's dtype": (
        with_value("model", "gradients", A, torch.ones(2, 4).double()),
        f"the gradient of {A} is torch.float64",
    ),
    "a gradient of nothing": (
        with_value("model", "gradients", "head.weight", torch.ones(5, 4)),
        r"the model's gradients: unexpected \['head.weight'\]",
    ),
    "an optimizer's state": (without("optimizer", "param_groups"), "cannot load its state: KeyError"),
    "Python's random state": (with_value("random", "python", (3, (1, 2), None)), "random state of python cannot be"),
    "NumPy's": (with_value("random", "numpy", ["MT19937", [1], 0, 0, 0.0]), "random state of numpy cannot be"),
    "NumPy's position": (with_value("random", "numpy", 2, 10**6), "random state of numpy .* position is 1000000"),
    "torch's": (with_value("random", "torch", torch.ones(3)), "random state of torch cannot be"),
    "no CUDA": (without("random", "cuda"), r"the random states: .* missing \['cuda'\]"),
    "a number for CUDA": (with_value("random", "cuda", 3), "random state of cuda cannot be"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_state_that_cannot_be_restored_changes_nothing(tmp_path: Path, what: str) -> None:
    change, message = BROKEN[what]
    reference.save_training(run(), tmp_path)
    tensors, metadata = decode(tmp_path / STATE)
    state = unflatten(json.loads(metadata[ABOUT]), tensors)
    change(state)
    changed: dict[str, Tensor] = {}
    write(tmp_path, flatten(state, "state", changed), changed)
    training = run()
    before = everything(training)
    with pytest.raises(ValueError, match=message):
        reference.load_training(training, tmp_path)
    assert same(everything(training), before)


@pytest.mark.parametrize("depth", [700, 10**5])
def test_metadata_nested_too_deeply_is_refused(tmp_path: Path, depth: int) -> None:
    text = "[" * depth + "]" * depth
    try:
        total = digest({}, json.loads(text))
    except RecursionError:
        total = ""
    (tmp_path / STATE).write_bytes(encode({}, {ABOUT: text, DIGEST: total}))
    with pytest.raises(ValueError, match=r"training\.safetensors: (loraspec_training in its metadata is|of the state)"):
        reference.load_training(run(), tmp_path)
