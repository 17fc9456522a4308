"""An adapter on disk, in Hugging Face PEFT's layout: how to save it and load it into a model."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base_layer import check_adaptable, features
from .config import PeftConfig
from .files.peft_format import PREFIX, beside_peft, check_fields, from_peft, scale_of, to_peft
from .files.plain_values import same
from .files.tensor_file import DTYPES, decode, digest, encode, file_in, read_json, write_json
from .files.training_file import load_training, save_training
from .files.whole_files import replace_files
from .layer import LinearLoRA
from .model import patch_linear_module

__all__ = ["load_adapter", "load_training", "save_adapter", "save_training"]

CONFIG, TENSORS, REST = "adapter_config.json", "adapter_model.safetensors", "automodel_peft_config.json"
DIGEST = "loraspec_sha256"  # hash of the tensors and the options that scale them, in the metadata of TENSORS
PARTS = {"lora_A.weight": "lora_A.weight", "lora_B.weight": "lora_B.weight", "lora_magnitude": "lora_magnitude_vector"}
Layers = dict[str, Any]


def save_adapter(model: nn.Module, config: PeftConfig, path: str | os.PathLike[str]) -> None:
    """Save the adapters of a model in the format of Hugging Face PEFT, which PEFT and `load_adapter` both read.

    There are three files: ``adapter_model.safetensors`` with ``base_model.model.<name>.lora_A.weight`` [r, K],
    ``….lora_B.weight`` [N, r] and with DoRA ``….lora_magnitude_vector`` [N], in their dtypes, neither scaled
    nor merged; ``adapter_config.json`` with PEFT's fields; ``automodel_peft_config.json`` with the options that
    have no field in PEFT. The same adapter gives the same bytes. The files replace older files, all or none.

    Args:
        model: a model with `LinearLoRA`s; a layer with two names is saved under both.
        config: the config of these layers.
        path: a folder, created if missing; its other files stay.
    Raises:
        ValueError: if there is no adapter, or config has another dim, alpha, use_rslora or use_dora than a
            layer, naming it.
        OSError: if a file cannot be written; the older files are then intact.
    Warns:
        UserWarning: for trainable parameters outside adapters, which are not saved; for an option that PEFT has no
            field for.
    Source: PEFT `save_pretrained`; NeMo Automodel `PeftAddon`.
    """
    layers, others = _layers(model)
    if not layers or "" in layers:
        raise ValueError(f"{type(model).__name__} holds no adapted layer: expected a model with a LinearLoRA in it")
    for name, layer in layers.items():
        _check_options(name, layer, config, "config")
    _warn_of_unsaved(model, layers)
    tensors = {PREFIX + key: tensor for key, tensor in _tensors(layers).items()}
    files = {
        TENSORS: encode(tensors, {"format": "pt", DIGEST: _digest(tensors, config)}),
        CONFIG: write_json(to_peft(config, layers, others, any(layer.fan_in_fan_out for layer in layers.values()))),
        REST: write_json(beside_peft(config)),
    }
    replace_files(Path(path), files)


def load_adapter(model: nn.Module, path: str | os.PathLike[str]) -> PeftConfig:
    """Load adapters that `save_adapter` or Hugging Face PEFT saved; all checks come before the first change.

    A model with adapters must have the same adapters as the file. It gets only their values, cast to its own
    dtypes; a merged layer is unmerged; the model keeps its dropout. A model without adapters is adapted first, as by
    `apply_lora_to_linear_modules`, in the dtypes of the file.

    Args:
        model: changed in place.
        path: the folder. A link in it may lead to a file of the folder or to the blobs of a Hugging Face cache.
    Returns:
        the config; for files of PEFT, its targets are the adapted modules and its dropout is on x.
    Raises:
        ValueError: if a file is not whole or is a pickle; if its tensors have other names or shapes than the model
            needs, are not floating point, or have values beyond the model's dtype; if it uses an unsupported
            option (see `peft_format`). The model is then unchanged.
        FileNotFoundError: naming the missing file.
    Source: PEFT `PeftModel.from_pretrained`.
    """
    return read_adapter(model, path, patch_linear_module)


def read_adapter(model: nn.Module, path: str | os.PathLike[str], patch: Callable[..., Any]) -> PeftConfig:
    """Implement `load_adapter`; `patch` is the `patch_linear_module` that adapts layers."""
    folder = Path(path)
    try:
        values = read_json(file_in(folder, CONFIG))
        check_fields(values)
        tensors, metadata = decode(_tensor_path(folder))
        named = _by_module(tensors)
        layers, others = _layers(model)
        modules = dict(model.named_modules(remove_duplicate=False))
        names = [name for name in (*others, *layers) if name not in named]
        rest = read_json(file_in(folder, REST)) if (folder / REST).exists() else None
        config = from_peft(values, rest, named, names)
        if DIGEST in metadata and metadata[DIGEST] != _digest(tensors, config):
            raise ValueError(f"{TENSORS} was not saved with this {CONFIG}, or one of them was changed since")
        _check_names(named, layers, modules)
        for name, parts in named.items():
            _check_layer(name, parts, modules[name], config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    if not layers:
        _adapt(model, {modules[name]: parts for name, parts in named.items()}, config, patch)
    _copy({name: modules[name] for name in named}, named)
    return config


def _layers(model: nn.Module) -> tuple[Layers, list[str]]:
    """The adapted layers under all their names, and the names of the other modules."""
    everything = dict(model.named_modules(remove_duplicate=False))
    layers = {name: module for name, module in everything.items() if isinstance(module, LinearLoRA)}
    return layers, [name for name in everything if name not in layers]


def _tensors(layers: Layers) -> dict[str, Tensor]:
    """The adapters' tensors by their names in PEFT."""
    named: dict[str, Tensor] = {}
    for name, layer in layers.items():
        state = {"lora_A.weight": layer.lora_A.weight, "lora_B.weight": layer.lora_B.weight}
        if layer.lora_magnitude is not None:
            state["lora_magnitude"] = layer.lora_magnitude
        named |= {f"{name}.{PARTS[part]}": tensor for part, tensor in state.items()}
    return named


def _digest(tensors: dict[str, Tensor], config: PeftConfig) -> str:
    return digest(tensors, [config.dim, float(config.alpha), config.use_rslora, config.use_dora])


def _check_options(name: str, layer: LinearLoRA, config: PeftConfig, source: str) -> None:
    """Refuse a layer whose options differ from the config."""
    for key in ("dim", "alpha", "use_rslora", "use_dora"):
        if getattr(layer, key) != getattr(config, key):
            raise ValueError(
                f"{name} has {key} = {getattr(layer, key)!r} but {source} has {getattr(config, key)!r}: "
                f"expected the same for every layer"
            )
    if layer.scale != scale_of(config):
        raise ValueError(f"{name} has the scale {layer.scale!r}: expected {scale_of(config)!r}, from its alpha")


def _warn_of_unsaved(model: nn.Module, layers: Layers) -> None:
    saved = {id(tensor) for tensor in _tensors(layers).values()}
    left = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in saved]
    if left:
        warnings.warn(f"trainable parameters outside adapters are not saved: {', '.join(left)}", stacklevel=3)


def _tensor_path(folder: Path) -> Path:
    try:
        return file_in(folder, TENSORS)
    except FileNotFoundError:
        pickled = folder / "adapter_model.bin"
        if pickled.exists():
            raise ValueError(f"{pickled} is a pickle, which could run anything: expected {TENSORS}") from None
        raise


def _by_module(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors by module and part.

    Raises:
        ValueError: for a name or a dtype that an adapter of a linear layer cannot have.
    """
    named: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(tensors.items()):
        part = next((part for part, theirs in PARTS.items() if key.endswith(f".{theirs}")), None)
        if part is None or not key.startswith(PREFIX):
            expected = ", ".join(PARTS.values())
            raise ValueError(f"unexpected tensor {key}: expected {PREFIX}<module>. followed by one of {expected}")
        if tensor.dtype not in DTYPES.values():
            raise ValueError(f"{key} is {tensor.dtype}: expected one of {', '.join(map(str, DTYPES.values()))}")
        named.setdefault(key.removeprefix(PREFIX).removesuffix(f".{PARTS[part]}"), {})[part] = tensor
    if not named:
        raise ValueError(f"{TENSORS} holds no tensor: expected the tensors of an adapter")
    return named


def _check_names(named: dict[str, Any], layers: Layers, modules: dict[str, nn.Module]) -> None:
    """Refuse tensors of modules that the model lacks, and adapters of the model that the file lacks."""
    unknown = [name for name in named if name not in modules]
    if unknown:
        raise ValueError(f"unexpected tensors, of modules that the model does not have: {', '.join(unknown)}")
    first: dict[nn.Module, str] = {}
    for name, parts in named.items():
        other = first.setdefault(modules[name], name)
        if not same(named[other], parts):
            raise ValueError(f"{other} and {name} are one module of the model but have different tensors")
    if layers:
        unexpected = [name for name in named if name not in layers]
        missing = [name for name, layer in layers.items() if layer not in first]
        if unexpected:
            raise ValueError(f"unexpected tensors, of modules that have no adapter: {', '.join(unexpected)}")
        if missing:
            raise ValueError(f"no tensors for adapters of the model: {', '.join(missing)}")


def _check_layer(name: str, parts: dict[str, Tensor], module: nn.Module, config: PeftConfig) -> None:
    """Refuse tensors that do not fit one module."""
    if isinstance(module, LinearLoRA):
        _check_options(name, module, config, CONFIG)
    else:
        try:
            lora_A = parts.get("lora_A.weight")
            check_adaptable(module, config.use_dora, None if lora_A is None else lora_A.dtype)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    linear: Any = module
    r, (k, n) = config.dim, features(linear)
    shapes: dict[str, list[int]] = {"lora_A.weight": [r, k], "lora_B.weight": [n, r]}
    if config.use_dora:
        shapes["lora_magnitude"] = [n]
    for part in sorted({*shapes, *parts}):
        if part not in parts or part not in shapes:
            problem = "no tensor" if part in shapes else "an unexpected tensor"
            raise ValueError(f"{problem} {PREFIX}{name}.{PARTS[part]}: use_dora is {config.use_dora}")
        if list(parts[part].shape) != shapes[part]:
            raise ValueError(f"{name}.{PARTS[part]} is {list(parts[part].shape)}: expected {shapes[part]}")
    if linear.weight.is_meta:
        raise ValueError(f"{name} is on the meta device: expected a model with values")
    if isinstance(module, LinearLoRA):
        _check_fits(name, parts, module)
    elif parts["lora_A.weight"].dtype != parts["lora_B.weight"].dtype:
        dtypes = [parts[part].dtype for part in ("lora_A.weight", "lora_B.weight")]
        raise ValueError(f"{name} has lora_A in {dtypes[0]} and lora_B in {dtypes[1]}: expected one dtype")


def _check_fits(name: str, parts: dict[str, Tensor], layer: LinearLoRA) -> None:
    """Refuse finite values that overflow in the dtype of the layer's parameter."""
    for part, value in parts.items():
        place = layer.get_parameter(part)
        if not torch.equal(value.isfinite(), value.to(place.dtype).isfinite()):
            raise ValueError(
                f"{name}.{PARTS[part]} has values up to {value.abs().max():.3g}: too large for {place.dtype}"
            )


def _adapt(model: nn.Module, parts: dict[nn.Module, Any], config: PeftConfig, patch: Callable[..., Any]) -> None:
    """Adapt modules as `apply_lora_to_linear_modules` does, but each in the dtype of its tensors."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    devices = {p.device for p in model.parameters() if p.is_cuda}
    # The initial values will be replaced, so drawing them must not change the caller's random state.
    with torch.random.fork_rng(devices=list(devices)):
        for module, own in parts.items():
            patch(
                module,
                config.dim,
                config.alpha,
                config.dropout,
                config.dropout_position,
                config.lora_A_init,
                own["lora_A.weight"].dtype,
                config.use_triton,
                use_dora=config.use_dora,
                use_rslora=config.use_rslora,
                use_memory_efficient_lora=config.use_memory_efficient_lora,
            )


@torch.no_grad()
def _copy(layers: Layers, named: dict[str, dict[str, Tensor]]) -> None:
    for name, layer in layers.items():
        layer.unmerge()
        for part, tensor in named[name].items():
            layer.get_parameter(part).copy_(tensor)
