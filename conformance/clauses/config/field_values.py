"""The fields of a config, their defaults, and the values that cases draw for them."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any

import torch

from conformance.cases.case import Case, Space
from conformance.judgement.outcomes import require
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

DEFAULTS: dict[str, Any] = {
    "target_modules": [],
    "exclude_modules": [],
    "match_all_linear": False,
    "dim": 8,
    "alpha": 32,
    "dropout": 0.0,
    "dropout_position": "post",
    "lora_A_init": "xavier",
    "lora_dtype": None,
    "use_triton": False,
    "use_dora": False,
    "use_rslora": False,
    "use_memory_efficient_lora": False,
}
ADDED = ("use_dora", "use_rslora", "use_memory_efficient_lora")  # beyond NeMo Automodel's fields
FREE = ("use_memory_efficient_lora",)  # changes no result: the target chooses its default
# Patterns that must be kept exactly: not stripped, lowercased, split, sorted or deduplicated.
ODD = ["Q_proj", "größe_proj ", "a,b", "fc1", "Q_proj"]
# Values other than the defaults. lora_dtype is written as to_dict writes it.
CHOICES: dict[str, tuple[Any, ...]] = {
    "target_modules": (["*_proj"], ["q_proj", "*.layers.1.*"], ["fc1", "fc2", ".*gate.*"], ODD),
    "exclude_modules": (["lm_head"], ["*.0.*", "head"]),
    "match_all_linear": (True,),
    "dim": (1, 16, 3, 1024),
    "alpha": (1, 16, 64, 2048, 0.5, 24.7),
    "dropout": (0.1, 0.5, 1.0, 1e-9, 1 / 3),
    "dropout_position": ("pre",),
    "lora_A_init": ("uniform", "kaiming"),
    "lora_dtype": ("bfloat16", "float16", "float32", "float64"),
    "use_triton": (True,),
    "use_dora": (True,),
    "use_rslora": (True,),
    "use_memory_efficient_lora": (True,),
}
# A case sets at most one of these.
CHOOSING = ("target_modules", "exclude_modules", "match_all_linear")


@dataclass(frozen=True)
class ConfigCase(Case):
    """A config with some fields set.

    Fields:
        chosen: the field that chooses modules, or `none`.   set: how many other fields are set.
        key: the field a clause is about.   bad: an index into its bad values.   way: how the config is made or copied.
    """

    chosen: str = "none"
    set: int = 0
    key: str = "dim"
    bad: int = 0
    way: str = ""

    def options(self) -> dict[str, Any]:
        """Valid values of the fields that this case sets, in new lists; lora_dtype is a name."""
        chance = random.Random(self.seed)
        others = [key for key in DEFAULTS if key not in CHOOSING]
        keys = {self.chosen} - {"none"} | set(chance.sample(others, min(self.set, len(others))))
        return {key: copy.deepcopy(chance.choice(CHOICES[key])) for key in DEFAULTS if key in keys}


CONFIGS = Space(ConfigCase, chosen=("none", *CHOOSING), set=(10, 4, 1, 7, 2, 0))
KEYS = Space(ConfigCase, key=tuple(DEFAULTS))


def fields_of(subject: Subject) -> list[str]:
    """The fields of this target's PeftConfig: NeMo Automodel's, and those of the added ones that it has."""
    return [key for key in DEFAULTS if key not in ADDED or hasattr(subject.thing(), key)]


def defaults_of(subject: Subject) -> dict[str, Any]:
    """The defaults that this target's PeftConfig must have."""
    return {key: DEFAULTS[key] for key in fields_of(subject) if key not in FREE}


def options_of(subject: Subject, case: ConfigCase) -> dict[str, Any]:
    """The case's options that the target has fields for."""
    known = fields_of(subject)
    return {key: value for key, value in case.options().items() if key in known}


def each_value(subject: Subject) -> list[dict[str, Any]]:
    """Every value of every field, each as the only option of a config: the values that decide are never drawn."""
    return [{key: copy.deepcopy(value)} for key in fields_of(subject) for value in CHOICES[key]]


def make(subject: Subject, **options: Any) -> Any:
    """Call the target's `PeftConfig(…)`."""
    shown = ", ".join(f"{key}={value!r}" for key, value in options.items())
    with calling_quietly(f"PeftConfig({shown})"):
        return subject.thing(**options)


def from_dict(subject: Subject, values: Any) -> Any:
    """Call the target's `PeftConfig.from_dict(…)`."""
    with calling_quietly(f"PeftConfig.from_dict({values!r})"):
        return subject.thing.from_dict(values)


def to_dict(config: Any) -> dict[str, Any]:
    """The result of `config.to_dict()`, which must be a dict."""
    with calling("to_dict()"):
        values = config.to_dict()
    require(type(values) is dict, f"to_dict() returned a {type(values).__name__}: expected a dict")
    return values  # type: ignore[no-any-return]


def held(value: Any) -> Any:
    """The value that a field holds for a value as to_dict writes it: a dtype's name becomes a torch.dtype."""
    return getattr(torch, value) if isinstance(value, str) and hasattr(torch, value) else value


def field_of(config: Any, key: str) -> Any:
    """The value of a config's field, which must exist."""
    with calling(f"reading {key} of a {type(config).__name__}"):
        return getattr(config, key)


def same(got: Any, wanted: Any) -> bool:
    """Whether two values are equal, where a bool never equals a number."""
    return bool(got == wanted) and isinstance(got, bool) == isinstance(wanted, bool)


def require_fields(config: Any, expected: dict[str, Any], what: str) -> None:
    """Require these values in a config's fields; a dtype's name stands for the dtype."""
    for key, value in expected.items():
        got = field_of(config, key)
        wanted = held(value) if key == "lora_dtype" else value
        require(same(got, wanted), f"{what} has {key} = {got!r}: expected {wanted!r}")
