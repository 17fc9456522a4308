"""The tensors of a split model that stay at the client, in a file from which a client without any weight starts."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files.tensor_file import decode, digest, encode

FILE = "kept.safetensors"
DIGEST = "loraspec_sha256"  # hash of the tensors, in the file's metadata


def kept_tensors(model: nn.Module, modules: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a model that the client needs: all but the weights of its remote modules, each once.

    They are parameters, buffers, those of no state_dict included, and tensors that are plain attributes. Tensors of
    other classes, such as packed or sharded ones, are left out.

    Args:
        model: the whole model.   modules: its `RemoteModule`s by name, which still have their weights.
    """
    places = _places(model, modules)
    return {name: t for name, t in places if not t.is_meta and type(t) in (Tensor, nn.Parameter)}


def written(tensors: Mapping[str, Tensor]) -> bytes:
    """The contents of the file `FILE` in the client's folder."""
    return encode(tensors, {DIGEST: digest(tensors, FILE)})


def replacements(model: nn.Module, modules: Mapping[str, Any], folder: Path) -> list[tuple[Tensor, Tensor]]:
    """The model's tensors on the meta device, each with a new tensor from the file; `put` puts them in.

    Raises:
        ValueError: naming a tensor that the file lacks or has in another shape, or a damaged file.
    """
    missing = {name: tensor for name, tensor in _places(model, modules) if tensor.is_meta}
    if not missing:
        return []
    held = _read(folder)
    found = []
    for name, tensor in missing.items():
        if name not in held:
            near = difflib.get_close_matches(name, held, n=1)
            hint = f": did the owner's model call it {near[0]!r}?" if near else ""
            raise ValueError(f"{folder}: the model has no values for {name}, and {FILE} has none either{hint}")
        new = held[name]
        if new.shape != tensor.shape:
            raise ValueError(f"{folder}: {name} is {list(new.shape)} but the model's is {list(tensor.shape)}")
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        found.append((tensor, new))
    return found


def put(replacements: list[tuple[Tensor, Tensor]]) -> None:
    """Give each tensor the values, the dtype and the device of its new one; it stays the same object, ties included."""
    for tensor, new in replacements:
        torch.utils.swap_tensors(tensor, new)  # type: ignore[no-untyped-call]


def _places(model: nn.Module, modules: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that stay at the client, by their first names."""
    private = [module.private_module for module in modules.values() if module.private_module is not None]
    remote = {id(module) for module in (*private, *modules.values())}
    seen = {id(module.weight) for module in private}
    for name, module in model.named_modules():
        if id(module) in remote:
            continue
        plain = {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
        for key, tensor in {**module._parameters, **module._buffers, **plain}.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{name}.{key}".removeprefix("."), tensor


def _read(folder: Path) -> dict[str, Tensor]:
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        tensors, metadata = decode(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from error
    if metadata.get(DIGEST) != digest(tensors, FILE):
        raise ValueError(f"{folder} is damaged: the tensors of {FILE} are not those that were saved")
    return tensors
