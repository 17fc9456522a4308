"""An object in memory as a target: a module made for it, which this process and its copies import by name."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

from conformance.errors import TargetError, UsageError, known
from conformance.specification.groups import groups
from conformance.target.target import Target

PREFIX = "loraspec_object_"
COUNT = itertools.count(1)
LAYER, FUNCTION = "LinearLoRA", "lora_linear"
EXPECTED = "expected a layer class, an instance of one, a function like lora_linear, a module, or a target's name"


def named(target: Any, names: Mapping[str, Any] | None = None) -> str:
    """The name by which this process, and copies of it, import the object as a target.

    Args:
        target: the name of a target, a module, a layer class, an instance of one, or a function; None where `names`
            says all.
        names: by name of the suite the user's object, or its name in the target.
    Raises:
        UsageError: if the object is no such thing, or a name is unknown.
    """
    if isinstance(target, str) and ":" not in target and not names:
        return target
    if isinstance(target, ModuleType) and not names and sys.modules.get(target.__name__) is target:
        _exposed(target)
        return target.__name__
    thing = _loaded(target) if isinstance(target, str) else target
    if isinstance(target, str) and not names and not isinstance(thing, type | FunctionType):
        return target  # it holds the names itself
    name = f"{PREFIX}{next(COUNT)}"
    sys.modules[name] = _module(name, thing, names or {})
    return name


def is_object(name: str) -> bool:
    """Whether a target's name is that of an object in memory, which another process cannot import."""
    return name.startswith(PREFIX)


def _loaded(target: str) -> Any:
    try:
        return Target.load(target).thing
    except TargetError as error:
        raise UsageError(str(error)) from error


def _module(name: str, thing: Any, names: Mapping[str, Any]) -> ModuleType:
    known(names, public_names(), "name")
    found = _held(thing) if names else _exposed(thing)
    found |= {ours: _attribute(thing, value) if isinstance(value, str) else value for ours, value in names.items()}
    module = ModuleType(name, "A target made of objects in memory.")
    module.__spec__ = ModuleSpec(name, None)
    declared = getattr(thing, "CONFORMANCE", {})
    declared = {"name": _title(thing, names), **declared} if isinstance(declared, dict) else declared
    vars(module).update(found, CONFORMANCE=declared)
    return module


def public_names() -> tuple[str, ...]:
    """The names that a target may expose."""
    listed = [name for group in groups().values() for name in (*group.required, *group.subjects, *group.positional)]
    return tuple(dict.fromkeys(name.partition(".")[0].partition("(")[0] for name in listed))


def _exposed(thing: Any) -> dict[str, Any]:
    """By name of the suite what an object is, or has."""
    from torch import nn

    if isinstance(thing, nn.Module):
        thing = type(thing)
    own = getattr(thing, "__name__", None)
    if isinstance(thing, type) and (own in public_names() or issubclass(thing, nn.Module)):
        return {own if own in public_names() else LAYER: thing}
    if inspect.isfunction(thing) or inspect.isbuiltin(thing):
        return {own if own in public_names() else _function_name(thing): thing}
    found = _held(thing)
    if not found and not isinstance(thing, ModuleType):
        raise UsageError(f"{_short(thing)} is of type {type(thing).__name__}: {EXPECTED}")
    if not found:
        raise UsageError(f"the module {own!r} has none of the names {LAYER}, {FUNCTION}, …: {_advice(thing)}")
    return found


def _held(thing: Any) -> dict[str, Any]:
    """The names of the suite that an object has."""
    return {name: getattr(thing, name) for name in public_names() if hasattr(thing, name)}


def _advice(module: ModuleType) -> str:
    from torch import nn

    layers = [name for name, each in vars(module).items() if isinstance(each, type) and issubclass(each, nn.Module)]
    layers.sort(key=lambda name: "lora" not in name.lower())
    return f"say which are yours, as in names={{{LAYER!r}: {(layers or ['MyLayer'])[0]!r}}}"


def _function_name(function: Any) -> str:
    """The name for a function: what takes a linear layer first makes layers, other functions compute y."""
    try:
        first = next(iter(inspect.signature(function).parameters.values()), None)
    except (TypeError, ValueError):
        return FUNCTION
    if first is None:
        return FUNCTION
    takes_layer = any(word in first.name.lower() for word in ("linear", "layer", "module"))
    return LAYER if takes_layer or "Linear" in str(first.annotation) else FUNCTION


def _attribute(thing: Any, name: str) -> Any:
    if not hasattr(thing, name):
        known([name], [word for word in dir(thing) if not word.startswith("_")], f"name in {_short(thing)}:")
    return getattr(thing, name)


def _title(thing: Any, names: Mapping[str, Any]) -> str:
    things = [thing] if thing is not None else list(names.values())
    named = [each if hasattr(each, "__name__") else type(each) for each in things]
    return ", ".join(dict.fromkeys(getattr(each, "__name__", "") for each in named))


def _short(thing: Any) -> str:
    text = repr(thing).partition("\n")[0]
    return text if len(text) <= 60 else f"{text[:59]}…"
