"""The configuration files of a saved adapter: those of Hugging Face PEFT and of NeMo Automodel."""

import dataclasses
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from ..config import PeftConfig

PREFIX = "base_model.model."  # before the name of each module in a file of PEFT

# PEFT's fields, our options, and PEFT's defaults; the default alpha differs from ours.
MAPPED: dict[str, tuple[str, Any]] = {
    "r": ("dim", 8),
    "lora_alpha": ("alpha", 8),
    "lora_dropout": ("dropout", 0.0),
    "use_dora": ("use_dora", False),
    "use_rslora": ("use_rslora", False),
}
# These fields choose modules; the names of the tensors do so more exactly.
CHOOSING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
# These fields do not change what a loaded adapter computes.
SAYING = (
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",  # the class of each layer says it
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
)
ONE_OF: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    # other initialisations change the base weights
    "init_lora_weights": (True, False, "gaussian", None),
}
REFUSED = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "kasa_config",
    "layer_replication",
    "loftq_config",
    "lora_bias",
    "lora_ga_config",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
OWN = ("dim", "alpha")  # NeMo Automodel reads them from PEFT's file


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
    values = {theirs: getattr(config, ours) for theirs, (ours, _) in MAPPED.items()}
    return values | {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "peft_type": "LORA",
        "rank_pattern": {},
        "revision": None,
        "target_modules": _targets(sorted(adapted), others),
        "task_type": None,
    }


def from_peft(
    values: Mapping[str, Any], rest: Mapping[str, Any] | None, adapted: Iterable[str], others: Iterable[str]
) -> PeftConfig:
    """The config of a saved adapter.

    Args:
        values: the contents of ``adapter_config.json``, after `check_fields`.
        rest: the contents of ``automodel_peft_config.json``; None without that file: dropout is then on x, and the
            targets are the adapted modules.
        adapted: names of the modules with tensors.   others: names of all other modules of the model.
    Raises:
        ValueError: naming a field, for a value that is out of range or differs from the other file; if the target
            modules and the adapted modules differ.
    """
    names = sorted(adapted)
    _check_targets(values, names, others)
    options = {ours: values.get(theirs, default) for theirs, (ours, default) in MAPPED.items()}
    if rest is None:
        options |= {"target_modules": [_exact(name) for name in names], "dropout_position": "pre"}
        return PeftConfig(**options, lora_A_init="kaiming")
    known = [f.name for f in dataclasses.fields(PeftConfig)]
    _ignore_unknown("automodel_peft_config.json", {key: value for key, value in rest.items() if key not in known})
    config = PeftConfig.from_dict(options | {key: value for key, value in rest.items() if key in known})
    for theirs, (ours, _) in MAPPED.items():
        if theirs in values and values[theirs] != getattr(config, ours):
            raise ValueError(
                f"adapter_config.json has {theirs} = {values[theirs]!r} but automodel_peft_config.json has "
                f"{ours} = {getattr(config, ours)!r}: expected the same"
            )
    return config


def beside_peft(config: PeftConfig) -> dict[str, Any]:
    """The contents of ``automodel_peft_config.json``: all options except dim and alpha, which are in PEFT's file.

    Source: NeMo Automodel `_get_automodel_peft_metadata`.
    """
    return {key: value for key, value in config.to_dict().items() if key not in OWN}


def scale_of(config: PeftConfig) -> float:
    """``alpha/dim``, or ``alpha/√dim`` with use_rslora."""
    return config.alpha / (math.sqrt(config.dim) if config.use_rslora else config.dim)


def check_fields(values: Mapping[str, Any]) -> None:
    """Refuse an unsupported field or value in ``adapter_config.json``.

    Raises:
        ValueError: naming a field and its value; for an unknown field unless it is null, false, 0 or empty.
    Warns:
        UserWarning: naming the ignored unknown fields.
    """
    if "peft_type" not in values:
        raise ValueError("adapter_config.json has no peft_type: expected 'LORA'")
    unknown = {}
    for key, value in values.items():
        if key in ONE_OF:
            if not any(value is allowed or (isinstance(value, str) and value == allowed) for allowed in ONE_OF[key]):
                raise ValueError(f"adapter_config.json has {key} = {value!r}: expected one of {ONE_OF[key]}")
        elif key in REFUSED:
            if value:
                raise ValueError(f"adapter_config.json has {key} = {value!r}, which is not supported")
        elif key not in (*MAPPED, *CHOOSING, *SAYING):
            unknown[key] = value
    _ignore_unknown("adapter_config.json", unknown)


def _ignore_unknown(file: str, unknown: Mapping[str, Any]) -> None:
    for key, value in unknown.items():
        if value:
            raise ValueError(f"{file} has the unknown field {key} = {value!r}: its effect is unknown")
    if unknown:
        warnings.warn(f"{file} has unknown fields, which are empty and ignored: {', '.join(unknown)}", stacklevel=5)


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
