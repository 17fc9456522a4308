"""The rule that chooses the experts of a model to adapt, by the names of their parameters."""

import difflib
import warnings
from typing import Any

from torch import nn

from .compiled_names import named_modules
from .config import PeftConfig
from .experts_module import check_experts, projections_of
from .matching import wildcard_match

Options = dict[str, tuple[int, int | float]]  # by projection, its rank and alpha


def chosen_experts(model: nn.Module, config: PeftConfig) -> dict[nn.Module, Options]:
    """The modules of experts that `target_parameters` chooses, each once, with the options of its projections.

    Raises:
        ValueError: naming a chosen module that cannot have adapters, such as one that has some; with use_dora; if
            moe_rank_scaling finds no number of experts for a token, or one that does not divide the rank.
    """
    chosen: dict[nn.Module, Options] = {}
    for module, names in _experts(model).items():
        for projection in projections_of(module):
            if any(_matches(pattern, f"{name}.{projection}") for name in names for pattern in config.target_parameters):
                chosen.setdefault(module, {})[projection] = experts_options(module, f"{names[0]}.{projection}", config)
    for module in chosen:
        name = _experts(model)[module][0]
        if config.use_dora:
            raise ValueError(f"{name}: use_dora = True: experts have no DoRA; expected False with target_parameters")
        try:
            check_experts(module)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return chosen


def warn_of_experts(model: nn.Module, config: PeftConfig, stacklevel: int) -> None:
    """Warn of a pattern that matches no parameter of experts, and of experts that match_all_linear leaves out."""
    experts = _experts(model)
    names = [
        f"{name}.{p}" for module, all_names in experts.items() for name in all_names for p in projections_of(module)
    ]
    for pattern in config.target_parameters:
        if not any(_matches(pattern, name) for name in names):
            ends = {end: None for name in names for end in (".".join(name.split(".")[-2:]), name)}
            near = difflib.get_close_matches(pattern, ends, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            warnings.warn(
                f"{pattern!r} of target_parameters matches no parameter of experts{hint}", stacklevel=stacklevel
            )
    if config.match_all_linear:
        left = [
            name
            for name in names
            if not any(_matches(pattern, name) for pattern in config.target_parameters)
            and not hasattr(model.get_submodule(name.rpartition(".")[0]), "lora_A")
        ]
        if left:
            warnings.warn(
                f"match_all_linear leaves the experts {', '.join(left)} without adapters: name them in "
                f"target_parameters",
                stacklevel=stacklevel,
            )


def _experts(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module with projections of experts with all its names, in registration order."""
    found: dict[nn.Module, list[str]] = {}
    for name, module in named_modules(model):
        if projections_of(module) and not isinstance(module, nn.ParameterDict):
            found.setdefault(module, []).append(name)
    return found


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a parameter's dotted name, or the end of it after a dot."""
    return name.endswith(f".{pattern}") or wildcard_match(pattern, name)


def experts_options(module: Any, name: str, config: PeftConfig) -> tuple[int, int | float]:
    """The rank and alpha of a projection, with moe_rank_scaling divided by the experts of a token."""
    dim, alpha = config.of_layer(name)
    if not config.moe_rank_scaling:
        return dim, alpha
    k = getattr(getattr(module, "config", None), "num_experts_per_tok", None)
    if not isinstance(k, int) or k < 1:
        raise ValueError(
            f"{name}: moe_rank_scaling = True, but num_experts_per_tok of the module's config is {k!r}: expected the "
            f"number of experts that a token chooses"
        )
    if dim % k:
        raise ValueError(
            f"{name}: dim = {dim} is not divisible by num_experts_per_tok = {k}, by which moe_rank_scaling divides it"
        )
    return dim // k, alpha
