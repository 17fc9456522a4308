"""The server's and the client's part of a split model on disk, and the deletion of the weights at the client."""

import gc
import json
import os
import re
import secrets
import shutil
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..encrypted.answer_check import AnswerCheck
from ..encrypted.backends import parameters_from
from ..encrypted.envelope import Parameters
from ..hybrid import CustomLinear
from ..layer import LinearLoRA
from ..quantization import QuantizedLinear
from . import kept_tensors, peft_layers
from .remote_module import RemoteModule

FORMAT = 1


def save(
    path: Path,
    model_name: str,
    modules: Mapping[str, RemoteModule],
    parameters: Any,
    model: nn.Module | None = None,
) -> None:
    """Write both parts: ``path/server/<model_name>`` has the integer weights, ``path/client/<model_name>`` the rest.

    Each part has a ``model.json`` that names one NumPy file for each module.

    Args:
        model: the whole model, whose other tensors go to the client's part, see `kept_tensors`; None writes none.
    Raises:
        FileExistsError: if one of the folders exists.   OSError: if a file cannot be written. Nothing is then left.
    """
    check_name(model_name)
    folders = [path / side / model_name for side in ("server", "client")]
    for folder in folders:
        if folder.exists():
            raise FileExistsError(f"{folder} exists already: expected a new model_name or path")
    quantized: dict[str, Any] = {name: m.quantized for name, m in modules.items() if m.quantized is not None}
    server = {name: {"weight": _narrow(layer.weight.cpu().numpy())} for name, layer in quantized.items()}
    client = {
        name: module.quantized.to_arrays() | module.answer_check.to_arrays() | {"digest": np.array(module.digest)}
        for name, module in modules.items()
        if module.quantized is not None
    }
    with ExitStack() as stack:  # both folders appear, or none
        for folder, arrays in zip(folders, (server, client), strict=True):
            temporary = stack.enter_context(_written(folder))
            files = {name: f"{number}.npz" for number, name in enumerate(arrays)}
            for name, file in files.items():
                np.savez(temporary / file, allow_pickle=False, **arrays[name])
            about = {"format": FORMAT, "model": model_name, "modules": files, "parameters": asdict(parameters)}
            (temporary / "model.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
            if model is not None and folder is folders[1]:
                kept = kept_tensors.written(kept_tensors.kept_tensors(model, modules))
                (temporary / kept_tensors.FILE).write_bytes(kept)


def load_server(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The integer weights [N, K] of a model by module name, and the encryption parameters for them.

    Raises:
        ValueError: naming a file that is missing or damaged.
    """
    arrays, about = _read(folder)
    parameters = about.get("parameters")
    if not isinstance(parameters, dict):
        raise ValueError(f"{folder} is damaged: model.json has no parameters")
    if not arrays:
        raise ValueError(f"{folder} is damaged: model.json names no modules")
    weights = {}
    for name, held in arrays.items():
        weight = held.get("weight")
        if weight is None or weight.ndim != 2 or weight.dtype.kind != "i":
            raise ValueError(f"{folder}: the weight of {name} is not a matrix of integers")
        weights[name] = torch.from_numpy(weight.astype(np.int64))
    return weights, parameters


ClientPart = tuple[QuantizedLinear, AnswerCheck, str]
"""A module at the client: the layer without its weight, the check of answers, and the digest of the weight."""


def load_client(
    path: Path, model_name: str, modules: Mapping[str, RemoteModule]
) -> tuple[dict[str, ClientPart], Parameters]:
    """Load the client's part of each of these modules, and the encryption parameters.

    A backward module that the model was saved without has no part.

    Raises:
        ValueError: naming the folder or the module, if files are missing or damaged, or the modules or shapes differ.
    """
    check_name(model_name)
    folder = path / "client" / model_name
    arrays, about = _read(folder)
    other = sorted(set(arrays) - set(modules))
    other += [name for name, module in modules.items() if name not in arrays and not module.is_backward]
    if other:
        raise ValueError(f"{folder} and the model differ in {', '.join(other)}: expected the same remote modules")
    try:
        parameters = parameters_from(about["parameters"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} is damaged: its parameters: {error}") from error
    parts = {}
    for name, module in modules.items():
        if name not in arrays:  # no gradient reaches this backward module
            continue
        try:
            part = module.quantized_linear.from_arrays(arrays[name])
            check = AnswerCheck.from_arrays(arrays[name], part.out_features, part.in_features)
            digest = str(arrays[name]["digest"])
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{folder}: the part of {name} is damaged: {error}") from error
        if (part.out_features, part.in_features) != (module.out_features, module.in_features):
            raise ValueError(
                f"{folder}: {name} is [{part.out_features}, {part.in_features}] "
                f"but the model's is [{module.out_features}, {module.in_features}]"
            )
        parts[name] = part, check, digest
    return parts, parameters


class Clearing:
    """The deletion of the weights of remote modules from the whole model.

    Args:
        model: the whole model.   modules: its remote modules by name.
    Raises:
        RuntimeError: if a module that stays at the client needs one of the weights.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, RemoteModule]) -> None:
        peft_layers.check_clearable(model, modules.values())
        self.modules = modules
        private = {id(m.private_module): m.private_module for m in modules.values() if m.private_module is not None}
        held: dict[int, Any] = {id(module.weight): module.weight for module in private.values()}
        self.owners: list[tuple[nn.Module, str]] = []
        for name, module in model.named_modules():
            for key, parameter in module._parameters.items():
                if id(parameter) not in held or id(module) in private:
                    continue
                delegates = isinstance(module, CustomLinear) or getattr(module, "base_layer", None) is not None
                if not delegates:
                    raise RuntimeError(
                        f"{name} needs the {key} that it shares with a remote module: nothing was cleared"
                    )
                if isinstance(module, LinearLoRA) and module.lora_magnitude is not None:
                    raise RuntimeError(f"{name} is a DoRA layer, which needs its weight here: nothing was cleared")
                self.owners.append((module, key))
        storages = {_storage(parameter) for parameter in held.values()} - {0}  # none on the meta device
        self.tensors = [weakref.ref(tensor) for tensor in _tensors() if _storage(tensor) in storages]

    def clear(self) -> None:
        """Replace the weights by tensors on the meta device."""
        for module, key in self.owners:
            shape: Any = module._parameters[key]
            module._parameters[key] = nn.Parameter(torch.empty_like(shape, device="meta"), requires_grad=False)
            del shape
        for remote in self.modules.values():
            remote.clear()

    def check(self) -> None:
        """Check that the weights are gone.

        Raises:
            RuntimeError: if an object outside the model, such as an optimiser, still holds a weight.
        """
        gc.collect()
        left = [tensor for tensor in (reference() for reference in self.tensors) if tensor is not None]
        if left:
            holders = {type(holder).__name__ for holder in gc.get_referrers(*left) if holder is not left}
            raise RuntimeError(
                f"the weights were cleared from the model, but {len(left)} tensors with their values remain, held by "
                f"{', '.join(sorted(holders)) or 'a running function'}: drop them (an optimiser of all parameters?)"
            )


def check_name(model_name: str) -> None:
    """Refuse a model name that is not a plain file name.

    Raises:
        ValueError: naming the model name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", model_name):
        raise ValueError(f"model_name {model_name!r}: expected up to 100 letters, digits, '_', '-' and '.'")


def _narrow(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The integers in the smallest type that holds them."""
    largest = max(int(weight.max(initial=0)), -int(weight.min(initial=0)) - 1)
    return weight.astype(np.int8 if largest < 2**7 else np.int16)


@contextmanager
def _written(folder: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` once it is complete, with the permissions of any new folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _read(folder: Path) -> tuple[dict[str, dict[str, np.ndarray[Any, Any]]], dict[str, Any]]:
    """All arrays of a folder by module, and its model.json."""
    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}, expected {FORMAT}")
        arrays = {}
        for name, file in about["modules"].items():
            if not re.fullmatch(r"[0-9]+\.npz", file):
                raise ValueError(f"it names the file {file!r}")
            with open(folder / file, "rb") as stream, np.load(stream, allow_pickle=False) as held:
                arrays[name] = {key: held[key] for key in held.files}
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not a saved model: {Path(error.filename).name} is missing") from error
    except Exception as error:
        raise ValueError(f"{folder} is damaged: {type(error).__name__}: {error}") from error
    return arrays, about


def _tensors() -> Iterator[Tensor]:
    return (held for held in gc.get_objects() if issubclass(type(held), Tensor))


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a tensor without a storage, for example a sparse one
        return 0
