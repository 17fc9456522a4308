"""A module of experts under an adapter: which modules can have one, and their weights as [E, N, K]."""

import difflib
import functools
import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .config import LORA_DTYPES

PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")
ARGUMENTS = "forward(hidden_states, top_k_index, top_k_weights)"


def projections_of(module: nn.Module) -> tuple[str, ...]:
    """The names of a module's Parameters that are projections of experts; none for another module."""
    return tuple(name for name in PROJECTIONS if getattr(module._parameters.get(name), "ndim", 0) == 3)


def check_experts(module: Any) -> None:
    """Refuse a module that cannot have an adapter for each expert.

    Raises:
        ValueError: naming the class, for a module that is not of transformers' protocol for experts: whose forward
            takes no indices, that does not say how its weights are stored, that lacks a projection, or whose weights
            are not floating point; for a module with an adapter.
    """
    kind = type(module).__name__
    if not isinstance(module, nn.Module):
        raise ValueError(f"got a {kind}: expected a module of experts")
    if hasattr(module, "lora_A") or hasattr(module, "lora_B"):
        raise ValueError(f"this {kind} already has an adapter: expected experts without one")
    names = inspect.signature(type(module).forward).parameters
    if len(names) < 4:
        raise ValueError(f"{kind} has forward({', '.join(list(names)[1:])}): expected {ARGUMENTS}")
    if not isinstance(getattr(module, "is_transposed", None), bool):
        raise ValueError(
            f"{kind} has no attribute is_transposed, so that nothing says how its weights are stored: expected True "
            f"for [experts, in, out], False for [experts, out, in]"
        )
    found, expected = projections_of(module), expected_projections(module)
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(f"{kind} has no 3-D Parameter {missing[0]}: expected {' and '.join(expected)}")
    for name in expected:
        weight = getattr(module, name)
        if weight.dtype not in LORA_DTYPES:
            accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in LORA_DTYPES)
            raise ValueError(f"{name} of this {kind} is {weight.dtype}: expected one of {accepted}")
    _check_sizes(module, *expected)


def _check_sizes(module: Any, up: str, down: str) -> None:
    first, second = weight_of(module, up).shape, weight_of(module, down).shape
    inner = first[1] // 2 if module.has_gate else first[1]
    if first[0] != second[0] or second[1:] != (first[2], inner):
        stored = "[experts, in, out]" if module.is_transposed else "[experts, out, in]"
        raise ValueError(
            f"{down} of this {type(module).__name__} is {list(getattr(module, down).shape)} but {up} is "
            f"{list(getattr(module, up).shape)}: they do not chain as weights stored {stored}"
        )


def expected_projections(module: Any) -> tuple[str, str]:
    """The names of a module's first and second projection."""
    return ("gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"), "down_proj"


def chosen_projections(module: Any, projections: Sequence[str] | None) -> tuple[str, ...]:
    """The projections to adapt, in the module's order; None is all.

    Raises:
        ValueError: naming a projection that the module does not have, with the nearest that it has; for none.
    """
    names = expected_projections(module)
    if projections is None:
        return names
    given = [projections] if isinstance(projections, str) else list(projections)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"projections has {name!r}, which {type(module).__name__} does not have: the nearest valid name is "
                f"{near!r}"
            )
    if not given:
        raise ValueError(f"projections = {projections!r}: expected one at least of {', '.join(names)}")
    return tuple(name for name in names if name in given)


def weight_of(module: Any, name: str) -> Tensor:
    """A projection's weights as [E, N, K]: the Parameter, or a view of one that is stored [E, K, N]."""
    weight: Tensor = getattr(module, name)
    return weight.mT if module.is_transposed else weight


def bias_of(module: Any, name: str) -> Tensor | None:
    """A projection's biases [E, N], or None."""
    return getattr(module, f"{name}_bias") if getattr(module, "has_bias", False) else None


def expert_arguments(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden states, indices and weights of a call, whatever names the module's own forward gives them."""
    bound = _signature(module.original_class).bind(module, *args, **kwargs)
    bound.apply_defaults()
    hidden, index, weights = list(bound.arguments.values())[1:4]
    return hidden, index, weights


@functools.cache
def _signature(kind: type[nn.Module]) -> inspect.Signature:
    return inspect.signature(kind.forward)


def check_slots(kind: str, hidden: Tensor, index: Tensor, weights: Tensor) -> None:
    """Refuse indices and weights that are not one of each for the slots of a token."""
    if index.ndim != hidden.ndim or index.shape[:-1] != hidden.shape[:-1] or index.is_floating_point():
        raise ValueError(
            f"{kind} got indices {list(index.shape)} of {index.dtype} for tokens {list(hidden.shape)}: expected "
            f"integers {[*hidden.shape[:-1], 'k']}"
        )
    if weights.shape != index.shape:
        raise ValueError(f"{kind} got weights {list(weights.shape)} for indices {list(index.shape)}: expected the same")
