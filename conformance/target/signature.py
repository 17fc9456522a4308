"""The signature of a target's callable: the arguments that it takes, also under the usual other names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

# The suite's name of an argument, and the names that libraries use for it.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "dim": ("r", "rank", "lora_rank", "lora_r", "lora_dim"),
    "alpha": ("lora_alpha", "network_alpha"),
    "dropout": ("lora_dropout", "dropout_p", "dropout_rate", "p"),
    "use_rslora": ("rslora", "rank_stabilized"),
    "use_dora": ("dora",),
    "lora_dtype": ("adapter_dtype",),
}
# A callable need not take these arguments while they have these values, which change nothing.
NEUTRAL: Mapping[str, Any] = {
    "alpha": ...,  # the scale is 1 then
    "dropout": 0.0,
    "dropout_position": ...,
    "use_rslora": False,
    "use_dora": False,
    "use_memory_efficient_lora": False,
}


def takes(thing: Any, argument: str) -> str | None:
    """The name under which a callable takes an argument; None if it does not take it."""
    try:
        parameters = inspect.signature(thing).parameters
    except (TypeError, ValueError):  # builtins and some wrappers have no signature
        return argument
    named = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for name in (argument, *ALIASES.get(argument, ())):
        if name in named:
            return name
    return argument if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else None


def accepts(thing: Any, argument: str) -> bool:
    """Whether a callable with a signature that can be read takes an argument."""
    try:
        inspect.signature(thing)
    except (TypeError, ValueError):
        return False
    return takes(thing, argument) is not None


def default_of(thing: Any, argument: str) -> Any:
    """The default of an argument of a callable; `inspect.Parameter.empty` if it has none or is not taken."""
    try:
        parameters = inspect.signature(thing).parameters
    except (TypeError, ValueError):
        return inspect.Parameter.empty
    parameter = parameters.get(takes(thing, argument) or "")
    return inspect.Parameter.empty if parameter is None else parameter.default


def arguments_for(thing: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """These arguments under the names that a callable takes, without neutral ones that it does not take."""
    given = {}
    for name, value in wanted.items():
        taken = takes(thing, name)
        if taken is not None:
            given[taken] = value
        elif not (name in NEUTRAL and NEUTRAL[name] in (value, ...)):
            given[name] = value  # the call then fails, and says which argument
    return given


def binds_by_name(thing: Any, name: str, signature: inspect.Signature) -> bool:
    """Whether a layer class takes a linear layer, a rank and an alpha, under whatever usual names."""
    if not name.endswith("LinearLoRA"):
        return False
    try:
        signature.bind(None, **arguments_for(thing, {"dim": 1, "alpha": 1}))
    except TypeError:
        return False
    return True
