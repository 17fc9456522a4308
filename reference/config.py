"""The options of an adapter: their names, defaults and valid values. Only this file states them."""

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeGuard

import torch

from .layer_patterns import checked_patterns, first_match
from .matching import pattern_list

DROPOUT_POSITIONS = ("pre", "post")
INIT_METHODS = ("xavier", "uniform", "kaiming")
LORA_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass
class PeftConfig:
    """Every option of LoRA with its default: the modules to adapt and their adapters. Treat it as frozen.

    Args:
        target_modules: patterns of the modules to adapt (see `matching`); None is [], a string is one
            pattern.
        exclude_modules: patterns of the linear modules to leave out; given alone, all other linear modules are adapted.
        match_all_linear: adapt every linear module.
        dim: rank r of the adapter, an int of at least 1.
        alpha: a finite number, not negative; the scale is ``alpha/dim`` (``alpha/√dim`` with use_rslora).
        dropout: probability in [0, 1], on the adapter path only, in training only.
        dropout_position: "pre" (on x) or "post" (on the adapter's output).
        lora_A_init: "xavier", "uniform" or "kaiming" (see `LinearLoRA.init_lora_weights`).
        lora_dtype: the adapter's dtype, a torch.dtype or its name ("bfloat16", "torch.bfloat16"), held as a
            torch.dtype; None takes the dtype of the layer.
        use_triton: patch with `TritonLinearLoRA` instead of `LinearLoRA`; both compute the same values. The source
            has two defaults, and both are kept: False in this class, True in `patch_linear_module`.
        use_dora: decompose the weight into magnitude and direction (see `dora`).
        use_rslora: rank-stabilised scale, ``alpha/√dim``.
        use_memory_efficient_lora: recompute in backward instead of saving; the computed values are the same.
        rank_pattern, alpha_pattern: dim and alpha of the layers that a pattern matches, by pattern; the first pattern
            that matches counts (see `layer_patterns`). None is {}.
        target_parameters: patterns of the projections of experts to adapt, such as ``experts.gate_up_proj``: a full
            dotted name or the end of one after a dot, with ``*`` as in target_modules. None is [], a string is one.
        moe_rank_scaling: give experts the rank ``dim/k``, with alpha as it is, where k is the number of experts that
            a token chooses (``num_experts_per_tok`` of the module's config).
    Raises:
        ValueError: naming the key, the value and what was expected, for a wrong type, NaN or a value out of
            range. `ModuleMatcher`, not this class, refuses more than one of the three ways to choose modules.
    Source: NeMo Automodel `PeftConfig`; the patterns are PEFT's; rsLoRA: Kalajdzievski (2023); DoRA: Liu et al.
        (2024).
    """

    target_modules: list[str] = field(default_factory=list)
    exclude_modules: list[str] = field(default_factory=list)
    match_all_linear: bool = False
    dim: int = 8
    alpha: int | float = 32
    dropout: float = 0.0
    dropout_position: Literal["pre", "post"] = "post"
    lora_A_init: str = "xavier"
    lora_dtype: torch.dtype | None = None
    use_triton: bool = False
    use_dora: bool = False
    use_rslora: bool = False
    use_memory_efficient_lora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int | float] = field(default_factory=dict)
    target_parameters: list[str] = field(default_factory=list)
    moe_rank_scaling: bool = False

    def __post_init__(self) -> None:
        self.target_modules = pattern_list("target_modules", self.target_modules)
        self.exclude_modules = pattern_list("exclude_modules", self.exclude_modules)
        self.target_parameters = pattern_list("target_parameters", self.target_parameters)
        check_dim(self.dim)
        check_alpha(self.alpha)
        check_dropout(self.dropout, self.dropout_position)
        check_init_method("lora_A_init", self.lora_A_init)
        self.lora_dtype = parse_dtype(self.lora_dtype)
        flags = ("match_all_linear", "use_triton", "use_dora", "use_rslora", "use_memory_efficient_lora")
        for key in (*flags, "moe_rank_scaling"):
            check_flag(key, getattr(self, key))
        self.rank_pattern = checked_patterns("rank_pattern", self.rank_pattern, check_dim_named)
        self.alpha_pattern = checked_patterns("alpha_pattern", self.alpha_pattern, check_alpha_named)

    def of_layer(self, name: str) -> tuple[int, int | float]:
        """The rank and alpha of the layer with this name."""
        by_rank, by_alpha = first_match(self.rank_pattern, name), first_match(self.alpha_pattern, name)
        rank = self.dim if by_rank is None else self.rank_pattern[by_rank]
        return rank, self.alpha if by_alpha is None else self.alpha_pattern[by_alpha]

    def to_dict(self) -> dict[str, Any]:
        """The options as a new JSON-serialisable dict that shares no mutable object with the config.

        Returns:
            every field under its name, in the order of the fields; lora_dtype as "bfloat16" or None.
        Source: NeMo Automodel `PeftConfig.to_dict`, where a torch.dtype breaks json.dumps.
        """
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for key in ("target_modules", "exclude_modules", "target_parameters"):
            values[key] = list(values[key])
        for key in ("rank_pattern", "alpha_pattern"):
            values[key] = dict(values[key])
        if self.lora_dtype is not None:
            values["lora_dtype"] = str(self.lora_dtype).removeprefix("torch.")
        return values

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> "PeftConfig":
        """The config that a dict describes; ``from_dict(to_dict(c)) == c``.

        Args:
            d: option names and values; missing options take their default. The dict is not modified.
        Raises:
            ValueError: for an unknown key, naming it, its value and the nearest valid key; and as in the
                class.
        Source: NeMo Automodel `PeftConfig.from_dict`.
        """
        if not isinstance(d, Mapping):
            raise ValueError(f"from_dict got a {type(d).__name__}, {d!r}: expected a dict of options")
        known = [f.name for f in fields(cls)]
        for key, value in d.items():
            if key not in known:
                nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
                raise ValueError(f"unknown key {key!r} = {value!r}: the nearest valid key is {nearest!r}")
        return cls(**d)


def check_dim(dim: object) -> None:
    """Refuse a rank that is not an int of at least 1; a bool is refused too."""
    check_dim_named("dim", dim)


def check_dim_named(key: str, dim: object) -> None:
    """`check_dim` for a rank with another name."""
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ValueError(f"{key} = {dim!r}: expected an int of at least 1")


def check_alpha(alpha: object) -> None:
    """Refuse an alpha that is negative or not a finite number; an alpha of 0 switches the adapter off."""
    check_alpha_named("alpha", alpha)


def check_alpha_named(key: str, alpha: object) -> None:
    """`check_alpha` for an alpha with another name."""
    if not _is_number(alpha) or not 0 <= alpha <= sys.float_info.max:
        raise ValueError(f"{key} = {alpha!r}: expected a finite number, not negative")


def check_dropout(dropout: object, dropout_position: object) -> None:
    """Refuse a probability outside [0, 1], NaN included, and a position that is neither "pre" nor "post"."""
    check_probability("dropout", dropout)
    if dropout_position not in DROPOUT_POSITIONS:
        raise ValueError(f"dropout_position = {dropout_position!r}: expected one of {DROPOUT_POSITIONS}")


def check_probability(key: str, value: object) -> None:
    """Refuse a value that is not a number in [0, 1]."""
    if not _is_number(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{key} = {value!r}: expected a probability in [0, 1]")


def check_init_method(key: str, method: object) -> None:
    """Refuse an initialisation that is not in `INIT_METHODS`."""
    if method not in INIT_METHODS:
        raise ValueError(f"{key} = {method!r}: expected one of {INIT_METHODS}")


def check_flag(key: str, value: object) -> None:
    """Refuse a value other than True and False: 0, 1 and "false" are usually a misplaced argument."""
    if not isinstance(value, bool):
        raise ValueError(f"{key} = {value!r}: expected True or False")


def parse_dtype(dtype: object) -> torch.dtype | None:
    """The torch.dtype that "bfloat16", "torch.bfloat16" or torch.bfloat16 names; None stays None.

    Raises:
        ValueError: if the dtype is not one of `LORA_DTYPES`, the dtypes that a linear layer computes in.
    """
    if dtype is None:
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if isinstance(found, torch.dtype) and found in LORA_DTYPES:
        return found
    names = ", ".join(str(d).removeprefix("torch.") for d in LORA_DTYPES)
    raise ValueError(f"lora_dtype = {dtype!r}: expected None or one of {names}")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
