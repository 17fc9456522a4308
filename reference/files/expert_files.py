"""Adapters on experts in the files of PEFT: what saving writes, and what loading puts into a model."""

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..compiled_names import named_modules
from ..config import PeftConfig
from ..expert_targets import experts_options
from ..experts import GroupedExpertsLoRA, adapt_experts
from ..experts_module import check_experts, projections_of, weight_of
from ..layer_patterns import exact_pattern, first_match
from .expert_keys import PACKED, fused, keys_of, pattern_of, tensors_of_each
from .expert_tensors import (
    VERSION,
    ExpertTensors,
    Pair,
    in_order,
    is_reversed_file,
    packed_tensors,
    reversed_in,
    unpacked,
)

Experts = dict[str, Any]  # by name, modules of experts


def experts_in(model: nn.Module) -> Experts:
    """Every module of experts, adapted or not, under all its names."""
    return {name: m for name, m in named_modules(model) if projections_of(m) and not isinstance(m, nn.ParameterDict)}


def adapted_experts(model: nn.Module) -> Experts:
    """The modules of experts that have adapters."""
    return {name: module for name, module in experts_in(model).items() if isinstance(module, GroupedExpertsLoRA)}


def check_targets(model: nn.Module, values: Mapping[str, Any]) -> None:
    """Refuse a file whose target_parameters names a parameter that is no projection of experts of the model."""
    names = [f"{name}.{p}" for name, module in experts_in(model).items() for p in projections_of(module)]
    targets = values.get("target_parameters") or []
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ValueError(
                f"adapter_config.json has target_parameters = {targets!r}, which is not supported for {target!r}: "
                f"expected projections of experts of this model: {', '.join(names) or 'it has none'}"
            )


def saved_tensors(experts: Experts, expert_keys: str) -> dict[str, Tensor]:
    """The adapters' tensors by their names in PEFT, packed or under keys for each expert."""
    found: dict[str, Tensor] = {}
    for name, module in experts.items():
        found |= packed_tensors(name, module) if expert_keys == PACKED else tensors_of_each(name, module, expert_keys)
    return found


def check_saved(experts: Experts, config: PeftConfig) -> None:
    """Refuse adapters of experts whose rank or scale is not the config's, naming the projection."""
    for name, module in experts.items():
        for projection in module.lora_A:
            dim, alpha = experts_options(module, f"{name}.{projection}", config)
            scale = alpha / (math.sqrt(dim) if config.use_rslora else dim)
            found = module.lora_A[projection].shape[1]
            if (found, module.scales[projection]) != (dim, scale):
                raise ValueError(
                    f"{name}.{projection} has the rank {found} and the scale {module.scales[projection]!r}: expected "
                    f"{dim} and {scale!r}, from config"
                )


def description_of(
    experts: Experts, layers: Iterable[str], config: PeftConfig, values: Mapping[str, Any], expert_keys: str
) -> dict[str, Any]:
    """The fields of ``adapter_config.json`` with those of experts: their parameters or keys, ranks where they differ.

    Args:
        layers: the names of the adapted linear layers.
    Warns:
        UserWarning: for dropout, which PEFT does not have for parameters.
    """
    if not experts:
        return dict(values)
    wanted = [Wanted(exact_pattern(name), [name], *config.of_layer(name)) for name in layers]
    for name, module in experts.items():
        wanted += [_wanted(name, module, p, config, expert_keys) for p in in_order(module, module.lora_A)]
    fields = dict(values) | {"peft_version": VERSION}
    for key, default, place in (("rank_pattern", config.dim, 0), ("alpha_pattern", config.alpha, 1)):
        fields[key] = _fitting(values[key], default, [(w.pattern, w.names, (w.rank, w.alpha)[place]) for w in wanted])
    if expert_keys != PACKED:
        return fields | {"target_modules": "|".join(w.pattern.removeprefix("^") for w in wanted)}
    if config.dropout:
        warnings.warn(
            f"PEFT has no dropout for experts: dropout = {config.dropout!r} is kept for this library only", stacklevel=4
        )
    names = [f"{name}.{projection}" for name, module in experts.items() for projection in module.lora_A]
    return fields | {"lora_dropout": 0.0, "target_parameters": sorted(names)}


class Wanted(NamedTuple):
    """The names of some layers in a file, the pattern that matches only these, and their rank and alpha."""

    pattern: str
    names: list[str]
    rank: int
    alpha: int | float


def _wanted(name: str, module: Any, projection: str, config: PeftConfig, expert_keys: str) -> Wanted:
    """The names of a projection in a file, with the rank of its tensors and its alpha."""
    full, (experts, rank, _) = f"{name}.{projection}", module.lora_A[projection].shape
    alpha = config.of_layer(full)[1]
    if expert_keys == PACKED:
        return Wanted(exact_pattern(full), [full], rank, alpha)
    keys = keys_of(module, projection, expert_keys)
    names = [f"{name}.{e}.{key}" for e in range(experts) for key in keys]
    return Wanted("^" + pattern_of(name, keys), names, rank, alpha)


def _fitting(patterns: Mapping[str, Any], default: Any, wanted: list[tuple[str, list[str], Any]]) -> dict[str, Any]:
    """The patterns in a file's order that match names, if they give each its value; else one for each other value."""
    in_order = dict(sorted(patterns.items()))
    found = {name: first_match(in_order, name) for _, names, _ in wanted for name in names}
    if all((default if (p := found[n]) is None else in_order[p]) == value for _, names, value in wanted for n in names):
        return {pattern: value for pattern, value in in_order.items() if pattern in found.values()}
    return {pattern: value for pattern, _, value in wanted if value != default}


def read_experts(
    model: nn.Module, found: Mapping[str, ExpertTensors], values: Mapping[str, Any], config: PeftConfig
) -> tuple[dict[str, dict[str, Pair]], PeftConfig]:
    """A and B by module and projection, and the config with the ranks that keys for each expert need.

    Raises:
        ValueError: for tensors that do not fit, a layout that cannot be told, and adapters that the file lacks.
    """
    experts, pairs = experts_in(model), {}
    adapted = {name: _adapted_in(name, experts[name], own, values) for name, own in found.items() if own.packed}
    verdicts: dict[str, bool | None] = {}
    for name, projections in adapted.items():
        verdicts |= reversed_in(name, experts[name], projections, found[name])
    old = is_reversed_file(verdicts, values.get("peft_version"))
    for name, own in found.items():
        module = experts[name]
        if own.packed and own.of_experts:
            raise ValueError(f"{name} has packed tensors and tensors for each expert: expected one of both")
        if own.packed:
            pairs[name] = unpacked(name, module, adapted[name], own, old)
            continue
        pairs[name], options = fused(name, module, own, config.of_layer, config.use_rslora)
        for projection, (rank, alpha) in options.items():
            config = _with_options(f"{name}.{projection}", rank, alpha, config)
    for name, of_module in pairs.items():
        _check_module(name, experts[name], of_module, config)
    missing = [name for name, module in adapted_experts(model).items() if name not in pairs]
    if missing:
        raise ValueError(f"no tensors for adapters of the model: {', '.join(missing)}")
    if not config.target_parameters:
        names = [f"{name}.{projection}" for name, of_module in pairs.items() for projection in of_module]
        config = dataclasses.replace(config, target_parameters=names)
    return pairs, config


def _adapted_in(name: str, module: Any, own: ExpertTensors, values: Mapping[str, Any]) -> list[str]:
    """The projections that have adapters in a file: those that target_parameters names, as many as there are."""
    targets = values.get("target_parameters") or []
    names = list(projections_of(module))
    chosen = [p for p in names if any(f"{name}.{p}" == t or f"{name}.{p}".endswith(f".{t}") for t in targets)]
    if not targets and len(own.packed) == len(names):
        chosen = names
    if sorted(own.packed) != list(range(len(chosen))) or not chosen:
        raise ValueError(
            f"{name} has {len(own.packed)} adapters in the file, but target_parameters = {targets!r} names "
            f"{len(chosen)} of its parameters: expected as many"
        )
    return chosen


def _with_options(full: str, rank: int, alpha: int | float, config: PeftConfig) -> PeftConfig:
    """The config with this rank and alpha for one projection."""
    key, (own_rank, own_alpha) = exact_pattern(full), config.of_layer(full)
    if rank != own_rank:
        config = dataclasses.replace(config, rank_pattern={key: rank, **config.rank_pattern})
    if alpha != own_alpha:
        config = dataclasses.replace(config, alpha_pattern={key: alpha, **config.alpha_pattern})
    return config


def _check_module(name: str, module: Any, pairs: Mapping[str, Pair], config: PeftConfig) -> None:
    """Refuse A and B that do not fit one module, its adapters if it has some, and the config's rank."""
    if not isinstance(module, GroupedExpertsLoRA):
        try:
            check_experts(module)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    elif set(pairs) != set(module.lora_A):
        raise ValueError(f"{name} has adapters on {', '.join(module.lora_A)}, the file on {', '.join(pairs)}")
    for projection, (A, B) in pairs.items():
        experts, n, k = weight_of(module, projection).shape
        rank = config.of_layer(f"{name}.{projection}")[0]
        if A.shape != (experts, rank, k) or B.shape != (experts, n, rank):
            raise ValueError(
                f"{name}.{projection} has A {list(A.shape)} and B {list(B.shape)} of each expert: expected "
                f"{[experts, rank, k]} and {[experts, n, rank]}, with r = {rank}"
            )
        if A.dtype != B.dtype or not A.is_floating_point():
            raise ValueError(f"{name}.{projection} has lora_A in {A.dtype} and lora_B in {B.dtype}: expected one dtype")
        if isinstance(module, GroupedExpertsLoRA):
            dim, alpha = config.of_layer(f"{name}.{projection}")
            scale = alpha / (math.sqrt(dim) if config.use_rslora else dim)
            if module.lora_A[projection].shape[1] != rank or module.scales[projection] != scale:
                raise ValueError(
                    f"{name}.{projection} has the rank {module.lora_A[projection].shape[1]} and the scale "
                    f"{module.scales[projection]!r} but the file has {rank} and {scale!r}: expected the same"
                )


def put_experts(model: nn.Module, pairs: Mapping[str, Mapping[str, Pair]], config: PeftConfig, kind: Any) -> None:
    """Adapt modules that have no adapters, and copy A and B into all of them; everything has been checked."""
    experts = experts_in(model)
    for name, of_module in pairs.items():
        module = experts[name]
        if not isinstance(module, GroupedExpertsLoRA):
            options = {projection: config.of_layer(f"{name}.{projection}") for projection in of_module}
            dtype = next(iter(of_module.values()))[0].dtype
            with torch.random.fork_rng(devices=[]):  # the drawn values are replaced
                adapt_experts(
                    module,
                    options,
                    config.lora_A_init,
                    dtype,
                    config.dropout,
                    config.dropout_position,
                    config.use_rslora,
                    kind,
                )
        module.unmerge()
        with torch.no_grad():
            for projection, (A, B) in of_module.items():
                module.lora_A[projection].copy_(A)
                module.lora_B[projection].copy_(B)
