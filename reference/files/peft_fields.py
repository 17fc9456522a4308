"""The fields of PEFT's ``adapter_config.json``: those with an option here, those without effect, and those refused."""

import difflib
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..config import check_alpha_named, check_dim_named, check_flag, check_probability
from ..layer_patterns import checked_patterns

# PEFT's fields, our options, PEFT's defaults (that of alpha differs from ours), and the check of a value.
MAPPED: dict[str, tuple[str, Any, Callable[[str, Any], None]]] = {
    "r": ("dim", 8, check_dim_named),
    "lora_alpha": ("alpha", 8, check_alpha_named),
    "lora_dropout": ("dropout", 0.0, check_probability),
    "use_dora": ("use_dora", False, check_flag),
    "use_rslora": ("use_rslora", False, check_flag),
}
# These options have the same name here; each is a dict, of values with this check.
PATTERNS: dict[str, Callable[[str, Any], None]] = {"rank_pattern": check_dim_named, "alpha_pattern": check_alpha_named}
# These fields choose modules; the names of the tensors do so more exactly.
CHOOSING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
# These fields do not change what an adapter computes after it has been loaded into linear layers.
WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",  # the fields of an initialisation count only with that initialisation, see `INITIALISATION`
    "ensure_weight_tying",  # of modules_to_save and of adapters of embeddings, which are refused
    "eva_config",
    "fan_in_fan_out",  # the class of each layer says it
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",  # counts only for layers of Megatron
    "megatron_core",
    "peft_version",
    "qalora_group_size",  # counts only with use_qalora
    "revision",
    "runtime_config",
    "target_parameters",  # the names of the tensors and `check_targets` say it
    "task_type",
)
ONE_OF: dict[str, tuple[Any, ...]] = {"peft_type": ("LORA",), "bias": ("none", None)}
INITIALISATION = "init_lora_weights"
# These initialisations only say how the adapter began: the base weights are those of the model.
ONLY_BEGAN = (True, False, None, "gaussian", "eva", "orthogonal")
# These replaced the base weights by a remainder, which the model to load into does not have.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
REFUSED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
KNOWN = (*MAPPED, *PATTERNS, *CHOOSING, *WITHOUT_EFFECT, *ONE_OF, INITIALISATION, *REFUSED)


def check_fields(values: Mapping[str, Any], ignored: Collection[str] = ()) -> None:
    """Refuse an unsupported field or value in ``adapter_config.json``.

    Args:
        ignored: unknown fields that may have a value.
    Raises:
        ValueError: naming a field and its value; for an unknown field unless it is ignored, null, false, 0 or empty.
    Warns:
        UserWarning: naming the unknown fields that are empty.
    """
    if "peft_type" not in values:
        raise ValueError("adapter_config.json has no peft_type: expected 'LORA'")
    for key, value in values.items():
        if key in MAPPED:
            _of_file(MAPPED[key][2], key, value)
        elif key in PATTERNS:
            _of_file(lambda key, value: checked_patterns(key, value, PATTERNS[key]), key, value)
        elif key in ONE_OF and not _is_one_of(value, ONE_OF[key]):
            raise ValueError(f"adapter_config.json has {key} = {value!r}: expected one of {ONE_OF[key]}")
        elif key == INITIALISATION:
            _check_initialisation(value)
        elif key in REFUSED and value:
            raise ValueError(f"adapter_config.json has {key} = {value!r}, which is not supported{_hint(key)}")
    refuse_unknown("adapter_config.json", values, KNOWN, ignored)


def refuse_unknown(file: str, values: Mapping[str, Any], known: Collection[str], ignored: Collection[str]) -> None:
    """Refuse the fields of a file that are neither known nor ignored and have a value; warn of the empty ones."""
    unknown = {key: value for key, value in values.items() if key not in known and key not in ignored}
    for key, value in unknown.items():
        if value:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"{file} has the unknown field {key} = {value!r}: its effect is unknown{meant}; "
                f"load_adapter(…, ignored_fields=[{key!r}]) loads without it"
            )
    if unknown:
        warnings.warn(f"{file} has unknown fields, which are empty and ignored: {', '.join(unknown)}", stacklevel=6)


def check_ignored(ignored: Collection[str]) -> None:
    """Refuse names of fields that may not be ignored, because their effect is known."""
    if isinstance(ignored, str):
        raise ValueError(f"ignored_fields = {ignored!r}: expected a list of names")
    for key in ignored:
        if key in KNOWN:
            raise ValueError(f"ignored_fields has {key!r}, whose effect is known: expected names of unknown fields")


def _of_file(check: Callable[[str, Any], object], key: str, value: Any) -> None:
    try:
        check(key, value)
    except ValueError as error:
        raise ValueError(f"adapter_config.json has {error}") from None


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    return any(value is one or (isinstance(value, str) and value == one) for one in allowed)


def _check_initialisation(value: Any) -> None:
    method = value.lower() if isinstance(value, str) else value
    if _is_one_of(method, ONLY_BEGAN):
        return
    problem = f"adapter_config.json has {INITIALISATION} = {value!r}"
    if isinstance(method, str) and method.startswith(CHANGED_BASE):
        raise ValueError(
            f"{problem}, which changed the base weights: expected a file that PEFT has converted, with "
            f"save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        )
    raise ValueError(f"{problem}: expected one of {ONLY_BEGAN}")


def _hint(key: str) -> str:
    if key == "modules_to_save":
        return ": its modules are trained copies of parts of the model; load them into the model yourself"
    return ""
