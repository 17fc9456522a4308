"""A training run on disk: what another process needs to go on with it, bit for bit as if nothing had happened."""

import copy
import json
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .plain_values import flatten, same, unflatten
from .tensor_file import decode, digest, encode, file_in
from .training import LoraTraining
from .whole_files import replace_files

STATE = "training.safetensors"
ABOUT, DIGEST = "loraspec_training", "loraspec_sha256"  # in its metadata
SETTINGS = ("gradient_accumulation_steps", "max_grad_norm", "run_optimizer", "calibrate")
STEPPERS = ("optimizer", "lr_scheduler")


def save_training(training: LoraTraining, path: str | os.PathLike[str], step: int = 0) -> None:
    """Save a training run, also within an accumulation window, so that `load_training` goes on with it.

    One file, ``training.safetensors``, replaces an older one whole. It holds the trainable parameters, their
    accumulated gradients and the model's buffers, the states of optimiser and scheduler, the settings of
    `LoraTraining.update_training_parameters` and its switches, and the random states of Python, NumPy, torch
    and, where it is in use, CUDA. Not the frozen parameters, the loss function and the data.

    Args:
        training: its optimizer and lr_scheduler have ``state_dict()``, or are None.
        path: a folder, made if it is not there; its other files stay.
        step: how many micro-batches are done, or whatever else says where the data go on.
    Raises:
        ValueError: if a state is neither numbers, strings, tensors, lists nor dicts, if an optimiser or scheduler
            has no state_dict, or the optimiser has parameters that are not the model's.
        OSError: if the file cannot be written; the older one is then whole.
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"step = {step!r}: expected an int of at least 0")
    tensors: dict[str, Tensor] = {}
    state = {"step": step, **_layout(training)}
    for name in STEPPERS:
        state[name] = _state(training, name)
    state["model"] = _model_state(training.inference_model)
    state["settings"] = {key: getattr(training, key) for key in SETTINGS}
    state["random"] = _random_state()
    about = flatten(state, "state", tensors)
    metadata = {ABOUT: json.dumps(about), DIGEST: digest(tensors, about)}
    replace_files(Path(path), {STATE: encode(tensors, metadata)})


def load_training(training: LoraTraining, path: str | os.PathLike[str]) -> int:
    """Make a training run what it was when it was saved; all is checked before anything is changed.

    Random states are restored too, so this is to be the last thing before going on.

    Args:
        training: of the same model, with an optimiser and a scheduler of the same kinds over the same parameters.
        path: the folder.
    Returns:
        the step that `save_training` was given.
    Raises:
        ValueError: if the file is not whole or of another run: other parameters, shapes, dtypes, optimiser or
            scheduler; training is then as it was.
        FileNotFoundError: if it is not there.
    Warns:
        UserWarning: if CUDA generators were saved and this process has another number of devices.
    """
    folder = Path(path)
    try:
        state = _read(folder)
        _check(training, state)
        _restore_steppers(training, state)
    except ValueError as error:
        raise ValueError(f"{folder / STATE}: {error}") from error
    _restore_model(training.inference_model, state["model"])
    for key in SETTINGS:
        setattr(training, key, state["settings"][key])
    _restore_random(state["random"])
    return int(state["step"])


def _layout(training: LoraTraining) -> dict[str, Any]:
    """What must be the same where the run goes on: the kinds and the names of what is trained."""
    kinds = {f"{name} kind": _kind(getattr(training, name)) for name in STEPPERS}
    return kinds | {"optimizer parameters": _groups(training)}


def _kind(thing: Any) -> str | None:
    return None if thing is None else f"{type(thing).__module__}.{type(thing).__qualname__}"


def _groups(training: LoraTraining) -> list[list[str]]:
    """The names of the optimiser's parameters, by group."""
    names = {id(p): name for name, p in training.inference_model.named_parameters()}
    groups = [[names.get(id(p), "") for p in g["params"]] for g in getattr(training.optimizer, "param_groups", [])]
    if any(not name for group in groups for name in group):
        raise ValueError("the optimizer has a parameter that is not the model's: its state could not be told apart")
    return groups


def _state(training: LoraTraining, name: str) -> Any:
    """The state of the optimiser or the scheduler."""
    thing = getattr(training, name)
    if thing is None:
        return None
    if not hasattr(thing, "state_dict") or not hasattr(thing, "load_state_dict"):
        raise ValueError(f"the {name}, a {type(thing).__name__}, has no state_dict and load_state_dict")
    return thing.state_dict()


def _model_state(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """What training changes in the model."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    persistent = model.state_dict()
    return {
        "parameters": trained,
        "gradients": {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None},
        "buffers": {name: buffer for name, buffer in model.named_buffers() if name in persistent},
    }


def _random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]
    }


def _read(folder: Path) -> dict[str, Any]:
    tensors, metadata = decode(file_in(folder, STATE))
    if ABOUT not in metadata:
        raise ValueError(f"its metadata has no {ABOUT}: expected a file of save_training")
    about = json.loads(metadata[ABOUT])
    if metadata.get(DIGEST) != digest(tensors, about):
        raise ValueError(f"its contents are not those that were saved: {DIGEST} differs")
    state = unflatten(about, tensors)
    if not isinstance(state, dict):
        raise ValueError(f"its state is a {type(state).__name__}: expected a dict")
    return state


def _check(training: LoraTraining, state: dict[str, Any]) -> None:
    """Refuse the state of another run."""
    for key, value in _layout(training).items():
        if state[key] != value:
            raise ValueError(f"it has {key} {state[key]}: this training has {value}")
    model = _model_state(training.inference_model)
    for kind in ("parameters", "buffers"):
        saved, own = state["model"][kind], model[kind]
        if set(saved) != set(own):
            extra, missing = sorted(set(saved) - set(own)), sorted(set(own) - set(saved))
            raise ValueError(f"it has other {kind} than the model: {extra} too many, {missing} missing")
        for name, tensor in saved.items():
            found, wanted = (tensor.dtype, list(tensor.shape)), (own[name].dtype, list(own[name].shape))
            if found != wanted:
                raise ValueError(f"{name} is {found[0]} {found[1]}: the model has {wanted[0]} {wanted[1]}")


def _restore_steppers(training: LoraTraining, state: dict[str, Any]) -> None:
    """Load optimiser and scheduler; if either does not take exactly what was saved, both are as they were."""
    before = {name: copy.deepcopy(_state(training, name)) for name in STEPPERS}
    try:
        for name in STEPPERS:
            if before[name] is not None:
                getattr(training, name).load_state_dict(state[name])
                if not same(_state(training, name), state[name]):
                    raise ValueError(f"the {name} does not take up the state that was saved")
    except Exception:
        for name in STEPPERS:
            if before[name] is not None:
                getattr(training, name).load_state_dict(before[name])
        raise


@torch.no_grad()
def _restore_model(model: nn.Module, saved: dict[str, dict[str, Tensor]]) -> None:
    for name, parameter in model.named_parameters():
        if name not in saved["parameters"]:
            continue
        parameter.copy_(saved["parameters"][name])
        gradient = saved["gradients"].get(name)
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    for name, buffer in model.named_buffers():
        if name in saved["buffers"]:
            buffer.copy_(saved["buffers"][name])


def _restore_random(saved: dict[str, Any]) -> None:
    random.setstate(saved["python"])
    kind, keys, *rest = saved["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] is None:
        return
    if len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    else:
        warnings.warn(
            f"the states of {len(saved['cuda'])} CUDA generators are not restored: there are "
            f"{torch.cuda.device_count()} devices here",
            stacklevel=3,
        )
