"""The errors of a target that are seen before it is judged: calls that do not bind, declarations that do not hold."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from conformance.specification.features import ABSENT, SUPPORTED
from conformance.specification.groups import groups
from conformance.target.absent_features import half_working
from conformance.target.features import contradicted, contradictions
from conformance.target.layer_form import LAYERS
from conformance.target.signature import binds_by_name


def binding_errors(target: Any) -> list[str]:
    """Messages about a target's callables that do not take their arguments, and about features declared wrongly."""
    problems = [f"{name} contradicts its declaration: {problem}" for name, problem in _contradictions(target)]
    for name, count in _positional().items():
        if not target.has(name):
            continue
        thing = getattr(target.thing, name)
        if not callable(thing):
            problems.append(f"{name} is of type {type(thing).__name__}: expected a callable")
            continue
        try:
            signature = inspect.signature(thing)
        except (TypeError, ValueError):
            continue  # builtins and some wrappers have no signature
        try:
            signature.bind(*range(count))
        except TypeError as error:
            if not binds_by_name(thing, name, signature):
                problems.append(f"{name}{signature} does not take its {count} positional arguments: {error}")
    return problems


def _contradictions(target: Any) -> Iterator[tuple[str, str]]:
    """What a target's subjects do other than its features say, each with the subject's name."""
    declared = target.declared.get("features", {})
    if not declared:
        return
    if target.has("LinearLoRA"):
        for problem in contradictions(target.thing.LinearLoRA, declared):
            yield "LinearLoRA", problem
        if declared.get("merging") == SUPPORTED and not target.has("LinearLoRA.merge"):
            yield "LinearLoRA", "feature 'merging' is declared supported, but the layer has no merge"
    for name, group in groups().items():
        if group.shown is not None:
            yield from ((group.subjects[0], problem) for problem in contradicted(target.shown(name), declared))
    absent = [name for name, value in declared.items() if value == ABSENT]
    for name in (*LAYERS, "lora_linear"):
        if target.has(name):
            subject = target.subject(name)
            dtype = next(iter(target.dtypes), "float32")
            found = [half_working(subject, feature, dtype) for feature in absent]
            yield from ((name, problem) for problem in found if problem)


def _positional() -> dict[str, int]:
    """The number of positional arguments of each callable of every group."""
    return {name: count for group in groups().values() for name, count in group.positional.items()}
