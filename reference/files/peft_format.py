"""The configuration files of a saved adapter: those of Hugging Face PEFT and of NeMo Automodel."""

import dataclasses
import math
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..config import PeftConfig
from ..layer_patterns import exact_pattern, first_match
from .peft_fields import CHOOSING, MAPPED, PATTERNS, refuse_unknown

OWN = ("dim", "alpha", *PATTERNS)  # NeMo Automodel reads the first two from PEFT's file


def to_peft(
    config: PeftConfig, adapted: Iterable[str], others: Iterable[str], fan_in_fan_out: bool = False
) -> dict[str, Any]:
    """The contents of ``adapter_config.json``, from which PEFT makes the same adapter.

    Args:
        adapted: dotted names of the adapted modules.   others: names of all other modules of the model.
        fan_in_fan_out: whether one of them is a Conv1D.
    Warns:
        UserWarning: for dropout on the adapter's output, because PEFT applies dropout to x only.
    """
    if config.dropout > 0 and config.dropout_position != "pre":
        warnings.warn(
            f"PEFT applies dropout to x: dropout_position = {config.dropout_position!r} is kept for this library only",
            stacklevel=4,
        )
    names = sorted(adapted)
    values = {theirs: getattr(config, ours) for theirs, (ours, _, _) in MAPPED.items()}
    return values | {
        "alpha_pattern": _sorted_patterns(config.alpha_pattern, names),
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "peft_type": "LORA",
        "rank_pattern": _sorted_patterns(config.rank_pattern, names),
        "revision": None,
        "target_modules": _targets(names, others),
        "task_type": None,
    }


def from_peft(
    values: Mapping[str, Any],
    rest: Mapping[str, Any] | None,
    adapted: Iterable[str],
    others: Iterable[str],
    ignored: Collection[str] = (),
) -> PeftConfig:
    """The config of a saved adapter.

    Args:
        values: the contents of ``adapter_config.json``, after `check_fields`.
        rest: the contents of ``automodel_peft_config.json``; None without that file: dropout is then on x, and the
            targets are the adapted modules.
        adapted: names of the modules with tensors.   others: names of all other modules of the model.
        ignored: unknown fields that may have a value.
    Raises:
        ValueError: naming a field, for a value that is out of range or differs from the other file; if the target
            modules and the adapted modules differ.
    """
    names = sorted(adapted)
    _check_targets(values, names, others)
    options = {ours: values.get(theirs, default) for theirs, (ours, default, _) in MAPPED.items()}
    options |= {key: values.get(key) or {} for key in PATTERNS}
    if rest is None:
        options |= {"target_modules": [_exact(name) for name in names], "dropout_position": "pre"}
        options["target_parameters"] = list(values.get("target_parameters") or [])
        return PeftConfig(**options, lora_A_init="kaiming")
    known = [f.name for f in dataclasses.fields(PeftConfig)]
    refuse_unknown("automodel_peft_config.json", rest, known, ignored)
    config = PeftConfig.from_dict(options | {key: value for key, value in rest.items() if key in known})
    same_here = {theirs: ours for theirs, (ours, _, _) in MAPPED.items()} | {key: key for key in PATTERNS}
    for theirs, ours in same_here.items():
        if theirs == "lora_dropout" and values.get("target_parameters"):
            continue  # PEFT has no dropout for parameters
        if theirs in values and options[ours] != getattr(config, ours):
            raise ValueError(
                f"adapter_config.json has {theirs} = {values[theirs]!r} but automodel_peft_config.json has "
                f"{ours} = {getattr(config, ours)!r}: expected the same"
            )
    return config


def beside_peft(config: PeftConfig) -> dict[str, Any]:
    """The contents of ``automodel_peft_config.json``: the options that PEFT's file lacks, and dropout and variants.

    Source: NeMo Automodel `_get_automodel_peft_metadata`.
    """
    written = {key: value for key, value in config.to_dict().items() if key not in OWN}
    return written | {"moe_rank_scaling": False}  # the files have the ranks themselves


def scale_of(config: PeftConfig, name: str) -> float:
    """The scale of a layer: ``alpha/dim``, or ``alpha/√dim`` with use_rslora."""
    dim, alpha = config.of_layer(name)
    return alpha / (math.sqrt(dim) if config.use_rslora else dim)


def _sorted_patterns(patterns: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The patterns sorted, as files hold them; one pattern for each layer if sorting changes the first that matches."""
    in_order = dict(sorted(patterns.items()))
    first = {name: first_match(patterns, name) for name in names}
    if all(first_match(in_order, name) == pattern for name, pattern in first.items()):
        return in_order
    return {exact_pattern(name): patterns[pattern] for name, pattern in first.items() if pattern is not None}


def _targets(names: list[str], others: Iterable[str]) -> list[str] | str:
    """The target modules for PEFT: a list, or a regular expression if a name is also the end of another module's."""
    ends = tuple(f".{name}" for name in names)
    if any(other.endswith(ends) for other in others):
        return "|".join(re.escape(name) for name in names)
    return names


def _check_targets(values: Mapping[str, Any], names: list[str], others: Iterable[str]) -> None:
    """Refuse a list of other modules than those with tensors; a regular expression from a file is not run."""
    targets = values.get("target_modules")
    if targets is None or isinstance(targets, str):
        return
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"adapter_config.json has target_modules = {targets!r}: expected a list of strings")

    def chosen(name: str) -> bool:
        return any(name == target or name.endswith(f".{target}") for target in targets)

    for name in names:
        if not chosen(name):
            raise ValueError(f"{name} has tensors but is not in target_modules = {targets!r}")
    if not any(values.get(key) for key in CHOOSING[1:]):
        for name in others:
            if chosen(name):
                raise ValueError(f"{name} is in target_modules = {targets!r} but has no tensors")


def _exact(name: str) -> str:
    """A pattern that matches only this name: a pattern without a dot also matches the end of a longer name."""
    return name if "." in name else f"{name}.*"
