"""A training run on disk, from which another process continues it with the same bits."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..encrypted.noise import checked_position
from ..sharded import is_sharded
from ..training import LoraTraining, check_training_arguments
from .plain_values import flatten, same, unflatten
from .random_states import check_keys, check_random, random_state, restore_random
from .tensor_file import decode, digest, encode, file_in
from .whole_files import replace_files

STATE = "training.safetensors"
ABOUT, DIGEST = "loraspec_training", "loraspec_sha256"  # keys in the metadata of STATE
SETTINGS = ("gradient_accumulation_steps", "max_grad_norm", "run_optimizer", "calibrate")
STEPPERS = ("optimizer", "lr_scheduler")
MODEL = ("parameters", "gradients", "buffers")


def save_training(training: LoraTraining, path: str | os.PathLike[str], step: int = 0) -> None:
    """Save a training run, also within an accumulation window, so that `load_training` can continue it.

    The file ``training.safetensors`` replaces an older one atomically. It holds the trainable parameters, their
    accumulated gradients and the model's buffers, the states of optimiser and scheduler, the settings of
    `LoraTraining.update_training_parameters` and its switches, the random states of Python, NumPy, torch
    and, if in use, CUDA, and the position of the noise of mode simulate in a model split by `HybridFHEModel`. It does
    not hold the frozen parameters, the loss function or the data.

    Args:
        training: its optimizer and lr_scheduler have ``state_dict()``, or are None.
        path: a folder, created if missing; its other files stay.
        step: the number of finished micro-batches, or another position in the data.
    Raises:
        ValueError: if a state holds other values than numbers, strings, tensors, lists and dicts, if an optimiser or
            scheduler has no state_dict, if the optimiser has parameters outside the model, or if the model is sharded.
        OSError: if the file cannot be written; the older file is then intact.
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"step = {step!r}: expected an int of at least 0")
    for name, parameter in training.inference_model.named_parameters():
        if is_sharded(parameter):
            raise ValueError(
                f"{name} is sharded over several ranks: expected the run of one process; save the run with "
                f"torch.distributed.checkpoint, and its adapters with save_adapter"
            )
    tensors: dict[str, Tensor] = {}
    state = {"step": step, **_layout(training)}
    for name in STEPPERS:
        state[name] = _state(training, name)
    state["model"] = _model_state(training.inference_model)
    state["settings"] = {key: getattr(training, key) for key in SETTINGS}
    state["random"] = random_state()
    state["noise"] = _noise(training)
    about = flatten(state, "state", tensors)
    metadata = {ABOUT: json.dumps(about), DIGEST: digest(tensors, about)}
    replace_files(Path(path), {STATE: encode(tensors, metadata)})


def load_training(training: LoraTraining, path: str | os.PathLike[str]) -> int:
    """Restore a training run from its file; all checks come before the first change.

    The random states are restored too, so call this last, right before training continues.

    Args:
        training: a run of the same model, with an optimiser and a scheduler of the same kinds over the same parameters.
        path: the folder.
    Returns:
        the step that was passed to `save_training`.
    Raises:
        ValueError: if the file is damaged or incomplete, or from another run with other parameters, shapes, dtypes,
            optimiser or scheduler; training is then unchanged.
        FileNotFoundError: if the file is missing.
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
    restore_random(state["random"])
    for name, module in _with_noise(training):
        module.noise_position = state["noise"][name]
    return int(state["step"])


def _layout(training: LoraTraining) -> dict[str, Any]:
    """The properties that a continued run must share: optimiser and scheduler classes, and parameter names."""
    kinds = {f"{name} kind": _kind(getattr(training, name)) for name in STEPPERS}
    return kinds | {"optimizer parameters": _groups(training)}


def _kind(thing: Any) -> str | None:
    return None if thing is None else f"{type(thing).__module__}.{type(thing).__qualname__}"


def _groups(training: LoraTraining) -> list[list[str]]:
    """The names of the optimiser's parameters, by group."""
    names = {id(p): name for name, p in training.inference_model.named_parameters()}
    groups = [[names.get(id(p), "") for p in g["params"]] for g in getattr(training.optimizer, "param_groups", [])]
    if any(not name for group in groups for name in group):
        raise ValueError("the optimizer has a parameter that is not the model's: its state cannot be named")
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
    """The tensors of the model that training changes."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    persistent = model.state_dict()
    return {
        "parameters": trained,
        "gradients": {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None},
        "buffers": {name: buffer for name, buffer in model.named_buffers() if name in persistent},
    }


def _with_noise(training: LoraTraining) -> list[tuple[str, Any]]:
    """The remote modules of a split model, by name."""
    return [(name, m) for name, m in training.inference_model.named_modules() if hasattr(m, "noise_position")]


def _noise(training: LoraTraining) -> dict[str, list[int]]:
    return {name: list(module.noise_position) for name, module in _with_noise(training)}


def _read(folder: Path) -> dict[str, Any]:
    tensors, metadata = decode(file_in(folder, STATE))
    try:
        return _state_in(tensors, metadata)
    except RecursionError:
        raise ValueError(f"{ABOUT} in its metadata is nested too deeply") from None


def _state_in(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, Any]:
    if ABOUT not in metadata:
        raise ValueError(f"its metadata has no {ABOUT}: expected a file of save_training")
    about = json.loads(metadata[ABOUT])
    if metadata.get(DIGEST) != digest(tensors, about):
        raise ValueError(f"its contents are not those that were saved: {DIGEST} differs")
    state: dict[str, Any] = unflatten(about, tensors)
    return state


def _check(training: LoraTraining, state: dict[str, Any]) -> None:
    """Refuse the state of another run, and a state that is incomplete or cannot be restored."""
    layout = _layout(training)
    state.setdefault("noise", {})  # files of older releases have none
    check_keys("the state", state, ("step", *layout, *STEPPERS, "model", "settings", "random", "noise"))
    for key, value in layout.items():
        if not same(state[key], value):
            raise ValueError(f"it has {key} {state[key]}: this training has {value}")
    if isinstance(state["step"], bool) or not isinstance(state["step"], int) or state["step"] < 0:
        raise ValueError(f"it has step = {state['step']!r}: expected an int of at least 0")
    _check_settings(state["settings"])
    check_random(state["random"])
    check_keys("the noise of remote modules", state["noise"], _noise(training))
    for name, position in state["noise"].items():
        try:
            checked_position(position)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    check_keys("the model", state["model"], MODEL)
    model = _model_state(training.inference_model)
    for kind in ("parameters", "buffers"):
        check_keys(f"the model's {kind}", state["model"][kind], model[kind])
        _check_tensors("", state["model"][kind], model[kind])
    gradients = state["model"]["gradients"]
    check_keys("the model's gradients", gradients, [name for name in model["parameters"] if name in gradients])
    _check_tensors("the gradient of ", gradients, model["parameters"])


def _check_tensors(what: str, found: dict[str, Any], own: dict[str, Tensor]) -> None:
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{what}{name} is a {type(tensor).__name__}: expected a tensor")
        got, wanted = (tensor.dtype, list(tensor.shape)), (own[name].dtype, list(own[name].shape))
        if got != wanted:
            raise ValueError(f"{what}{name} is {got[0]} {got[1]}: the model has {wanted[0]} {wanted[1]}")


def _check_settings(settings: Any) -> None:
    check_keys("the settings", settings, SETTINGS)
    try:
        check_training_arguments(settings["gradient_accumulation_steps"], settings["max_grad_norm"])
    except TypeError as error:
        raise ValueError(f"its max_grad_norm is not a number: {error}") from None
    for key in ("run_optimizer", "calibrate"):
        if not isinstance(settings[key], int):
            raise ValueError(f"it has {key} = {settings[key]!r}: expected True or False")


def _restore_steppers(training: LoraTraining, state: dict[str, Any]) -> None:
    """Load optimiser and scheduler; if one of them does not reproduce the saved state, restore both."""
    before = {name: copy.deepcopy(_state(training, name)) for name in STEPPERS}
    try:
        for name in STEPPERS:
            if before[name] is not None:
                getattr(training, name).load_state_dict(state[name])
                if not same(_state(training, name), state[name]):
                    raise ValueError(f"the {name} does not reproduce the saved state")
    except Exception as error:
        for name in STEPPERS:
            if before[name] is not None:
                getattr(training, name).load_state_dict(before[name])
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"an optimizer or lr_scheduler cannot load its state: {error!r}") from error


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
