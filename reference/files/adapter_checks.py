"""The checks that an adapter fits its config, and that the tensors of a file fit a model."""

from typing import Any

import torch
from torch import Tensor, nn

from ..base_layer import check_adaptable, features
from ..config import PeftConfig
from ..layer import LinearLoRA
from ..sharded import is_sharded
from .peft_fields import MAPPED
from .peft_format import scale_of
from .plain_values import same
from .tensor_names import PARTS, PREFIX, prefix_hint

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def check_options(name: str, layer: LinearLoRA, config: PeftConfig, first: str, source: str) -> None:
    """Refuse a layer whose options differ from the config or the file; `first` is the name that patterns see."""
    wanted = dict(zip(("dim", "alpha"), config.of_layer(first), strict=True))
    wanted |= {key: getattr(config, key) for key in ("use_rslora", "use_dora")}
    theirs = {ours: field for field, (ours, _, _) in MAPPED.items()} if source == CONFIG else {}
    for key, value in wanted.items():
        if getattr(layer, key) != value:
            patterns = {"dim": config.rank_pattern, "alpha": config.alpha_pattern}.get(key)
            by = " for this layer" if patterns else ""
            raise ValueError(
                f"{name} has {key} = {getattr(layer, key)!r} but {source} has {theirs.get(key, key)} = {value!r}{by}: "
                f"expected the same"
            )
    if layer.scale != scale_of(config, first):
        raise ValueError(f"{name} has the scale {layer.scale!r}: expected {scale_of(config, first)!r}, from its alpha")


def check_names(named: dict[str, Any], layers: dict[str, Any], modules: dict[str, nn.Module]) -> None:
    """Refuse tensors of modules that the model lacks, and adapters of the model that the file lacks."""
    unknown = [name for name in named if name not in modules]
    if unknown:
        hint = prefix_hint(unknown, modules)
        raise ValueError(f"unexpected tensors, of modules that the model does not have: {', '.join(unknown)}{hint}")
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


def check_layer(name: str, parts: dict[str, Tensor], module: nn.Module, config: PeftConfig, first: str) -> None:
    """Refuse tensors that do not fit one module."""
    if isinstance(module, LinearLoRA):
        check_options(name, module, config, first, CONFIG)
    else:
        try:
            lora_A = parts.get("lora_A.weight")
            check_adaptable(module, config.use_dora, None if lora_A is None else lora_A.dtype)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    linear: Any = module
    r, (k, n) = config.of_layer(first)[0], features(linear)
    shapes: dict[str, list[int]] = {"lora_A.weight": [r, k], "lora_B.weight": [n, r]}
    if config.use_dora:
        shapes["lora_magnitude"] = [n]
    for part in sorted({*shapes, *parts}):
        if part not in parts or part not in shapes:
            problem = "no tensor" if part in shapes else "an unexpected tensor"
            raise ValueError(f"{problem} {PREFIX}{name}.{PARTS[part]}: use_dora is {config.use_dora}")
        if list(parts[part].shape) != shapes[part]:
            raise ValueError(
                f"{name}.{PARTS[part]} is {list(parts[part].shape)}: expected {shapes[part]}, with r = {r}"
            )
    if linear.weight.is_meta:
        raise ValueError(f"{name} is on the meta device: expected a model with values")
    if isinstance(module, LinearLoRA):
        _check_fits(name, parts, module)
    elif is_sharded(linear.weight):
        raise ValueError(f"{name} is sharded and has no adapter: load the adapter first, then shard the model")
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


def check_copies(copies: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Refuse PEFT's copies of the base model (embeddings, head) unless the model has the same values."""
    for name, copy in copies.items():
        own = state[name].detach()
        what = f"{TENSORS} holds a copy of {name}, which is the base model's (PEFT's save_embedding_layers)"
        if own.shape != copy.shape:
            raise ValueError(
                f"{what}: it is {list(copy.shape)} and the model's is {list(own.shape)}; resize the model's first"
            )
        if is_sharded(own) or not torch.equal(copy.to(own.device), own):
            raise ValueError(
                f"{what}: it differs from the model's; load it into the model first, or save the adapter with "
                f"save_embedding_layers=False"
            )
