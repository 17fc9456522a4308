"""The arguments with which a layer class is built, guessed from the names in its signature."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from conformance.errors import UsageError

# By meaning the names that libraries give to it.
NAMES: Mapping[str, tuple[str, ...]] = {
    "base": (
        *("orig_linear", "original_linear", "orig_layer", "original_layer", "orig_module", "org_module", "base"),
        *("original_module", "base_layer", "base_linear", "base_module", "linear", "linear_layer", "layer", "module"),
    ),
    "in": (
        "in_features",
        "in_dim",
        "in_size",
        "input_dim",
        "input_size",
        "input_features",
        "d_in",
        "fan_in",
        "in_feat",
        "dim_in",
    ),
    "out": (
        *("out_features", "out_dim", "out_size", "output_dim", "output_size", "output_features", "d_out", "fan_out"),
        *("out_feat", "dim_out"),
    ),
    "rank": ("r", "rank", "dim", "lora_rank", "lora_r", "lora_dim", "low_rank"),
    "alpha": ("alpha", "lora_alpha", "network_alpha", "adapter_alpha"),
    "scale": ("scale", "scaling", "lora_scale", "lora_scaling"),
    "dropout": (
        *("dropout", "lora_dropout", "dropout_p", "dropout_prob", "dropout_rate", "dropout_probability", "p"),
        *("p_dropout", "drop", "adapter_dropout", "lora_dropout_p"),
    ),
    "bias": ("bias", "use_bias", "has_bias"),
    "dtype": ("dtype",),
    "device": ("device",),
    "adapter": ("adapter_name", "adapter"),
    "rslora": ("use_rslora", "rslora", "use_rs_lora", "rs_lora", "rank_stabilized"),
    "merging": ("merge_weights", "merge_on_eval"),
    "weight": ("weight", "base_weight"),
    "name": ("name", "lora_name", "layer_name", "module_name"),
}
# By meaning the argument, in terms of the parameters of `WrappedLayer.wrap`.
SOURCES: Mapping[str, str] = {
    "base": "orig_linear",
    "in": "orig_linear.in_features",
    "out": "orig_linear.out_features",
    "rank": "dim",
    "alpha": "alpha",
    "scale": "alpha / dim",
    "dropout": "dropout",
    "bias": "orig_linear.bias is not None",
    "dtype": "orig_linear.weight.dtype",
    "device": "orig_linear.weight.device",
    "adapter": '"default"',
    "rslora": 'options["use_rslora"]',
    "merging": "False",
    "weight": "orig_linear.weight",
    "name": '"layer"',
}
NOTES: Mapping[str, str] = {
    "base": "the linear layer to adapt",
    "in": "K",
    "out": "N",
    "rank": "the rank r",
    "scale": "the factor itself",
    "dropout": "the dropout probability",
    "bias": "whether there is a bias",
    "adapter": "any name",
    "rslora": "whether the scale is alpha / √r",
    "merging": "train() and eval() leave the weight alone",
    "name": "any name",
}
IN_CONFIGURATIONS = ("rank", "alpha", "scale", "dropout", "rslora", "dtype", "merging")
IF_REQUIRED = ("weight", "name")  # by default they are something else
WITH_SIZES = ("bias", "dtype", "device")  # they say nothing about a layer that is given


@dataclass(frozen=True)
class Argument:
    """An argument of the class: its name, its meaning, and how sure the meaning is.

    Attributes:
        source: the argument in terms of the parameters of `WrappedLayer.wrap`.
        note: what the guess is, for a comment.
        parts: the arguments of the configuration that it is, which is a `kind`.
    """

    name: str
    meaning: str
    source: str
    note: str
    parts: tuple[Argument, ...] = ()
    kind: Any = None

    @classmethod
    def of(cls, name: str, meaning: str, note: str = "") -> Argument:
        """An argument of a meaning."""
        return cls(name, meaning, SOURCES[meaning], note or NOTES.get(meaning, "by its name"))

    @classmethod
    def of_configuration(cls, name: str, kind: type, parts: tuple[Argument, ...]) -> Argument:
        """An argument that is an object of a class with these arguments."""
        given = ", ".join(f"{part.name}={part.source}" for part in parts)
        return cls(name, "configuration", f"{kind.__name__}({given})", "by its type", parts, kind)

    def value(self, values: Mapping[str, Any]) -> Any:
        """The argument itself, from the values of sources and meanings."""
        if self.kind is not None:
            return self.kind(**{part.name: part.value(values) for part in self.parts})
        return values[self.source] if self.source in values else values[self.meaning]


def arguments(layer: type, named: str) -> tuple[Argument, ...]:
    """The arguments for a class.

    Args:
        named: the class as messages name it.
    Raises:
        UsageError: if the signature cannot be read, or has a parameter that must be given and means nothing known.
    """
    try:
        parameters = list(inspect.signature(layer).parameters.values())
    except (TypeError, ValueError) as error:
        raise UsageError(f"{named} has no signature that can be read: {error}") from error
    found = [Argument.of(p.name, meaning) for p in parameters if (meaning := _meaning(p)) is not None]
    found = [*_first_is_base(_ranked(found), parameters), *_configurations(layer, found, parameters)]
    meanings = meanings_of(found)
    if "base" in meanings:
        found = [argument for argument in found if argument.meaning not in (*WITH_SIZES, "in", "out")]
    elif any(p.kind is p.VAR_KEYWORD for p in parameters):
        rest = [meaning for meaning in WITH_SIZES if meaning not in meanings]
        found += [Argument.of(meaning, meaning, "one of the class's further keywords") for meaning in rest]
    _check(found, parameters, named)
    return tuple(found)


def without_guessed_keywords(found: Iterable[Argument], layer: type) -> tuple[Argument, ...]:
    """The arguments that the signature names."""
    named = inspect.signature(layer).parameters
    return tuple(argument for argument in found if argument.name in named)


def rescaled(found: Iterable[Argument], source: str, note: str) -> tuple[Argument, ...]:
    """The arguments with another alpha, for a class of another factor, so that its factor is alpha / dim."""
    return tuple(
        Argument.of_configuration(argument.name, argument.kind, rescaled(argument.parts, source, note))
        if argument.kind is not None
        else dataclasses.replace(argument, source=source, note=note)
        if argument.meaning == "alpha"
        else argument
        for argument in found
    )


def meanings_of(found: Iterable[Argument]) -> set[str]:
    """The meanings of arguments, and of what a configuration among them holds."""
    return {meaning for argument in found for meaning in (argument.meaning, *meanings_of(argument.parts))}


def _ranked(found: list[Argument]) -> list[Argument]:
    """The arguments, with a `dim` beside another rank and an output size taken for the number of input features."""
    meanings = [argument.meaning for argument in found]
    if meanings.count("rank") < 2 or "out" not in meanings or "in" in meanings:
        return found
    return [Argument.of(a.name, "in") if a.name.strip("_") == "dim" else a for a in found]


def _configurations(layer: type, found: list[Argument], parameters: list[inspect.Parameter]) -> Iterator[Argument]:
    """The arguments whose type is a class with a rank of its own, such as a dataclass of options."""
    known = {argument.name for argument in found}
    try:
        hints = typing.get_type_hints(layer.__init__)  # type: ignore[misc]
    except Exception:  # noqa: BLE001  (an annotation that cannot be read says nothing)
        return
    for parameter in parameters:
        kind = hints.get(parameter.name)
        if parameter.name in known or not isinstance(kind, type):
            continue
        try:
            own = inspect.signature(kind).parameters.values()
        except (TypeError, ValueError):
            continue
        parts = tuple(Argument.of(p.name, meaning) for p in own if (meaning := _meaning(p)) in IN_CONFIGURATIONS)
        if "rank" in meanings_of(parts):
            yield Argument.of_configuration(parameter.name, kind, parts)


def _meaning(parameter: inspect.Parameter) -> str | None:
    if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
        return None
    name = parameter.name.lower().strip("_")
    found = next((meaning for meaning, names in NAMES.items() if name in names), None)
    return None if found in IF_REQUIRED and parameter.default is not parameter.empty else found


def _first_is_base(found: list[Argument], parameters: list[inspect.Parameter]) -> list[Argument]:
    """The arguments, with the first parameter taken for the linear layer where nothing else gives it or its sizes."""
    if {"base", "in", "out"} & {argument.meaning for argument in found} or not parameters:
        return found
    first = parameters[0]
    if first.default is not first.empty or any(argument.name == first.name for argument in found):
        return found
    return [Argument.of(first.name, "base", "the linear layer to adapt, as the first parameter"), *found]


def _check(found: list[Argument], parameters: list[inspect.Parameter], named: str) -> None:
    given = {argument.name for argument in found}
    meanings = meanings_of(found)
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    for parameter in parameters:
        if parameter.name not in given and parameter.default is parameter.empty and parameter.kind not in kinds:
            raise UsageError(
                f"{named} needs the argument {parameter.name!r}, which has no known meaning: write the target by hand, "
                "as conformance/targets/peft.py does"
            )
    wanted: dict[str, Any] = {"rank": "the rank", "base": "the linear layer"}
    if {"in", "out"} <= meanings:
        del wanted["base"]
    for meaning, words in wanted.items():
        if meaning not in meanings:
            expected = ", ".join(NAMES[meaning])
            raise UsageError(f"{named} has no parameter for {words}: expected one of {expected}")
