"""An adapter on disk, in Hugging Face PEFT's layout: how to save it and load it into a model."""

import os
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .compiled_names import named_modules, plain_name
from .config import PeftConfig
from .experts import GroupedExpertsLoRA
from .files.adapter_checks import CONFIG, TENSORS, check_copies, check_layer, check_names, check_options
from .files.expert_files import (
    adapted_experts,
    check_saved,
    check_targets,
    description_of,
    experts_in,
    put_experts,
    read_experts,
    saved_tensors,
)
from .files.expert_keys import PACKED, check_expert_keys
from .files.expert_tensors import split_tensors
from .files.peft_fields import PATTERNS, check_fields, check_ignored
from .files.peft_format import beside_peft, from_peft, to_peft
from .files.rank_agreement import Ranks
from .files.tensor_file import decode, digest, encode, file_in, read_json, write_json
from .files.tensor_names import PARTS, PREFIX, NamedTensors, by_module
from .files.training_file import load_training, save_training
from .files.whole_files import replace_files
from .layer import LinearLoRA
from .model import patch_linear_module
from .sharded import gathered, reshard, shard_of

__all__ = ["load_adapter", "load_training", "save_adapter", "save_training"]

REST = "automodel_peft_config.json"
DIGEST = "loraspec_sha256"  # hash of the tensors and the options that scale them, in the metadata of TENSORS
Layers = dict[str, Any]


def save_adapter(
    model: nn.Module, config: PeftConfig, path: str | os.PathLike[str], *, expert_keys: str = PACKED
) -> None:
    """Save the adapters of a model in the format of Hugging Face PEFT, which PEFT and `load_adapter` both read.

    There are three files: ``adapter_model.safetensors`` with ``base_model.model.<name>.lora_A.weight`` [r, K],
    ``….lora_B.weight`` [N, r] and with DoRA ``….lora_magnitude_vector`` [N], in their dtypes, neither scaled
    nor merged; ``adapter_config.json`` with PEFT's fields; ``automodel_peft_config.json`` with the options that
    have no field in PEFT. The same adapter gives the same bytes. The files replace older files, all or none.

    The parameters of a sharded model (`fully_shard`, tensor parallelism) are gathered: every rank must call this, and
    one writes the files.

    Args:
        model: a model with `LinearLoRA`s or `GroupedExpertsLoRA`s; a layer with two names is saved under both.
        config: the config of these layers.
        path: a folder, created if missing; its other files stay.
        expert_keys: the names of the adapters of experts: "packed" as PEFT's target_parameters; "gate_up_down" or
            "w1_w3_w2" as linear modules of each expert, ``experts.0.gate_proj`` or ``experts.0.w1``.
    Raises:
        ValueError: for another expert_keys; if there is no adapter, or config has another dim, alpha, use_rslora or
            use_dora than a layer, naming it.
        OSError: if a file cannot be written; the older files are then intact. With a sharded model every rank raises.
    Warns:
        UserWarning: for trainable parameters outside adapters, which are not saved; for an option that PEFT has no
            field for.
    Source: PEFT `save_pretrained`; NeMo Automodel `PeftAddon`.
    """
    check_expert_keys(expert_keys)
    reshard(model)
    ranks = Ranks(model)
    with ranks.together():
        layers, others = _layers(model)
        experts = adapted_experts(model)
        if not (layers or experts) or "" in layers or "" in experts:
            raise ValueError(f"{type(model).__name__} holds no adapted layer: expected a model with a LinearLoRA in it")
        first = _first_names(layers)
        for name, layer in layers.items():
            check_options(name, layer, config, first[layer], "config")
        check_saved(experts, config)
        _warn_of_unsaved(model, layers)
        description = to_peft(config, layers, others, any(layer.fan_in_fan_out for layer in layers.values()))
        description = description_of(experts, layers, config, description, expert_keys)
    saved = _tensors(layers) | saved_tensors(experts, expert_keys)
    tensors = {PREFIX + key: gathered(tensor) for key, tensor in saved.items()}
    with ranks.together():
        if ranks.is_first:
            files = {
                TENSORS: encode(tensors, {"format": "pt", DIGEST: _digest(tensors, config, description)}),
                CONFIG: write_json(description),
                REST: write_json(beside_peft(config)),
            }
            replace_files(Path(path), files)


def load_adapter(model: nn.Module, path: str | os.PathLike[str], *, ignored_fields: Collection[str] = ()) -> PeftConfig:
    """Load adapters that `save_adapter` or Hugging Face PEFT saved; all checks come before the first change.

    The names in the files are those of the model itself, also where torch.compile has wrapped it or a part of it.

    A model with adapters must have the same adapters as the file. It gets only their values, cast to its own
    dtypes; a merged layer is unmerged; the model keeps its dropout. A model without adapters is adapted first, as by
    `apply_lora_to_linear_modules`, in the dtypes of the file. Afterwards exactly the adapters' parameters require
    gradients. With a sharded model every rank must call this, and takes its shards from the file; adapters must
    have been put into it before it was sharded.

    Args:
        model: changed in place.
        path: the folder. A link in it may lead to a file of the folder or to the blobs of a Hugging Face cache.
        ignored_fields: names of unknown fields of the configuration files that have a value and may be ignored.
    Returns:
        the config; for files of PEFT, its targets are the adapted modules and its dropout is on x.
    Raises:
        ValueError: if a file is not whole or is a pickle; if its tensors have other names or shapes than the model
            needs, are not floating point, or have values beyond the model's dtype; if it uses an unsupported
            option (see `peft_fields`). The model is then unchanged. With a sharded model every rank raises.
        FileNotFoundError: naming the missing file.
    Source: PEFT `PeftModel.from_pretrained`.
    """
    return read_adapter(model, path, patch_linear_module, ignored_fields)


def read_adapter(
    model: nn.Module,
    path: str | os.PathLike[str],
    patch: Callable[..., Any],
    ignored_fields: Collection[str] = (),
    kind: type[GroupedExpertsLoRA] = GroupedExpertsLoRA,
) -> PeftConfig:
    """Implement `load_adapter`.

    Args:
        patch: the `patch_linear_module` that adapts layers.   kind: the class of adapted experts.
    """
    check_ignored(ignored_fields)
    reshard(model)
    folder, ranks = Path(path), Ranks(model)
    layers, others = _layers(model)
    modules = dict(named_modules(model))
    with ranks.together():
        try:
            values = read_json(file_in(folder, CONFIG))
            check_fields(values, ignored_fields)
            check_targets(model, values)
            tensors, metadata = decode(_tensor_path(folder))
            state = {plain_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
            of_experts, rest_tensors = split_tensors(tensors, experts_in(model), PREFIX)
            found = by_module(rest_tensors, state, TENSORS) if rest_tensors or not of_experts else NamedTensors()
            named = found.adapters
            check_names(named, layers, modules)
            names = [name for name in (*others, *layers) if name not in named]
            rest = read_json(file_in(folder, REST)) if (folder / REST).exists() else None
            config = from_peft(values, rest, named, names, ignored_fields)
            if DIGEST in metadata and metadata[DIGEST] != _digest(tensors, config, values):
                raise ValueError(f"{TENSORS} was not saved with this {CONFIG}, or one of them was changed since")
            first = _first_names(modules)
            for name, parts in named.items():
                check_layer(name, parts, modules[name], config, first[modules[name]])
            check_copies(found.copies, state)
            pairs, config = read_experts(model, of_experts, values, config)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
    if not layers:
        _adapt(model, {modules[name]: (first[modules[name]], parts) for name, parts in named.items()}, config, patch)
    _copy({name: modules[name] for name in named}, named)
    put_experts(model, pairs, config, kind)
    _train_adapters_only(model)
    return config


def _layers(model: nn.Module) -> tuple[Layers, list[str]]:
    """The adapted layers under all their names, and the names of the other modules."""
    everything = dict(named_modules(model))
    layers = {name: module for name, module in everything.items() if isinstance(module, LinearLoRA)}
    return layers, [name for name in everything if name not in layers]


def _first_names(modules: dict[str, Any]) -> dict[Any, str]:
    """The first name of each module, by which patterns choose its rank and alpha."""
    first: dict[Any, str] = {}
    for name, module in modules.items():
        first.setdefault(module, name)
    return first


def _tensors(layers: Layers) -> dict[str, Tensor]:
    """The adapters' tensors by their names in PEFT."""
    named: dict[str, Tensor] = {}
    for name, layer in layers.items():
        state = {"lora_A.weight": layer.lora_A.weight, "lora_B.weight": layer.lora_B.weight}
        if layer.lora_magnitude is not None:
            state["lora_magnitude"] = layer.lora_magnitude
        named |= {f"{name}.{PARTS[part]}": tensor for part, tensor in state.items()}
    return named


def _of_experts(model: nn.Module) -> set[int]:
    """The ids of the parameters of all adapters on experts."""
    modules = adapted_experts(model).values()
    return {id(p) for module in modules for side in (module.lora_A, module.lora_B) for p in side.values()}


def _digest(tensors: dict[str, Tensor], config: PeftConfig, values: Mapping[str, Any]) -> str:
    """The hash of the tensors and of the options that scale them; `values` are the contents of PEFT's file."""
    about: list[Any] = [config.dim, float(config.alpha), config.use_rslora, config.use_dora]
    patterns = [values.get(key) or {} for key in PATTERNS]
    return digest(tensors, about + patterns if any(patterns) else about)


def _warn_of_unsaved(model: nn.Module, layers: Layers) -> None:
    saved = {id(tensor) for tensor in _tensors(layers).values()} | _of_experts(model)
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


def _adapt(model: nn.Module, parts: dict[nn.Module, Any], config: PeftConfig, patch: Callable[..., Any]) -> None:
    """Adapt modules as `apply_lora_to_linear_modules` does, but each in the dtype of its tensors."""
    devices = {p.device for p in model.parameters() if p.is_cuda}
    # The initial values will be replaced, so drawing them must not change the caller's random state.
    with torch.random.fork_rng(devices=list(devices)):
        for module, (first, own) in parts.items():
            patch(
                module,
                *config.of_layer(first),
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
            place = layer.get_parameter(part)
            place.copy_(shard_of(tensor.to(place.dtype), place))


def _train_adapters_only(model: nn.Module) -> None:
    """Freeze every parameter that is not an adapter's."""
    adapters = {id(tensor) for tensor in _tensors(_layers(model)[0]).values()} | _of_experts(model)
    for parameter in model.parameters():
        if parameter.requires_grad != (id(parameter) in adapters):
            parameter.requires_grad_(id(parameter) in adapters)
