"""The target module of a layer class: the class imported, one small layer of it built and read, the text checked."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from conformance.errors import UsageError, suggestion
from conformance.target.draft import module_text
from conformance.target.draft.arguments import (
    Argument,
    arguments,
    rescaled,
    without_guessed_keywords,
)
from conformance.target.draft.built_layer import ALPHA, BuiltLayer, K, N, R, built
from conformance.target.draft.measured_layer import measured
from conformance.target.draft.module_text import Drafted

# Other factors than alpha / r that classes have, and the alpha with which the factor is alpha / dim.
OTHER_FACTORS = (
    (ALPHA, "alpha / dim", "the built layer multiplies by it as it is"),
    (ALPHA / R**0.5, "alpha / dim**0.5", "the built layer's factor is alpha / √r"),
)
OURS = ("orig_linear", "dim", "alpha", "dropout", "dropout_position", "lora_A_init_method", "lora_dtype")


@dataclass(frozen=True)
class LayerTarget:
    """The text of a target module, and how sure it is.

    Attributes:
        computes: whether a built layer computes the formula with the attributes that were found.
    """

    text: str
    guesses: int
    computes: bool


def layer_target(spec: str, target: str) -> LayerTarget:
    """The target module of a class.

    Args:
        spec: `package.module:Class`.   target: the name of the module that will be written.
    Raises:
        UsageError: if there is no such class, or its layers cannot be built, called or read.
    """
    module, _, name = spec.partition(":")
    named = f"layer {spec!r}"
    layer = _imported(module, name, named)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = arguments(layer, named)
        found, made = _built(layer, found, named)
        does = measured(layer, found, made, named)
        for factor, source, note in OTHER_FACTORS:
            if does.factor is not None and math.isclose(does.factor, factor, rel_tol=1e-3):
                found = rescaled(found, source, note)
                made = built(layer, found, named)
                does = measured(layer, found, made, named)
                break
        top = module.partition(".")[0]
        providers = importlib.metadata.packages_distributions().get(top, [""])
        drafted = Drafted(module, name, providers[0], target, found, made, does)
        text = module_text.as_it_is(drafted) if _is_ours(layer, made) else module_text.wrapped(drafted)
        _check(text, target, named)
    return LayerTarget(text, module_text.guesses(text), does.factor is not None)


def _imported(module: str, name: str, named: str) -> type[nn.Module]:
    if not module or not name or "/" in module or module.endswith(".py"):
        raise UsageError(f"{named} is no class of a module: expected package.module:Class")
    try:
        holder = importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UsageError(f"{named} does not import: {type(error).__name__}: {error}") from error
    classes = [key for key, value in vars(holder).items() if isinstance(value, type) and issubclass(value, nn.Module)]
    layer = getattr(holder, name, None)
    if layer is None:
        near = suggestion(name, classes) if classes else f"{module} has no class that inherits torch.nn.Module"
        raise UsageError(f"{named} is unknown: {near}")
    if not isinstance(layer, type) or not issubclass(layer, nn.Module):
        kind = "a class that does not inherit it" if isinstance(layer, type) else f"a {type(layer).__name__}"
        raise UsageError(f"{named} is {kind}: expected a class that inherits torch.nn.Module")
    return layer


def _built(layer: type[nn.Module], found: tuple[Argument, ...], named: str) -> tuple[tuple[Argument, ...], BuiltLayer]:
    """A small layer, built without the guessed keywords if the class does not take them."""
    try:
        return found, built(layer, found, named)
    except UsageError:
        fewer = without_guessed_keywords(found, layer)
        if fewer == found:
            raise
        return fewer, built(layer, fewer, named)


def _is_ours(layer: type[nn.Module], made: BuiltLayer) -> bool:
    """Whether the class has the names of `reference`, so that it needs no wrapper."""
    first = tuple(inspect.signature(layer).parameters)[: len(OURS)]
    places = {name: getattr(made, name) for name in ("weight", "lora_A", "lora_B")}
    names = {name: place and place.source for name, place in places.items()}
    expected = {"weight": ".weight", "lora_A": ".lora_A.weight", "lora_B": ".lora_B.weight"}
    return first == OURS and names == expected and hasattr(made.layer, "scale") and hasattr(made.layer, "bias")


def _check(text: str, target: str, named: str) -> None:
    """Build a layer from the text, as the suite will.

    Raises:
        UsageError: if that raises.
    """
    written: dict[str, Any] = {"__name__": target}
    try:
        exec(compile(text, f"{target}.py", "exec"), written)
        layer = written["LinearLoRA"](nn.Linear(K, N), R, ALPHA)
        shapes = [list(matrix.weight.shape) for matrix in (layer.lora_A, layer.lora_B)]
        if shapes != [[R, K], [N, R]]:
            raise ValueError(f"lora_A and lora_B of rank {R} for {K} → {N} features have the shapes {shapes}")
        _ = (layer.weight, layer.bias, layer.scale)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"{named} cannot be given loraspec's names: a layer built from the text raised {said}"
        ) from error
