"""Calls of the target for the clauses of group `model`: patch one layer, or apply a config to a model."""

from __future__ import annotations

import logging
import math
import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import reference
from conformance.cases.case import Space
from conformance.cases.linear_case import LinearCase, tamed
from conformance.cases.operands import Operands
from conformance.cases.reproducer_marks import chooses_config
from conformance.cases.seeding import seed_torch
from conformance.clauses.model.matching_oracle import DEFAULT, chosen
from conformance.clauses.model.small_models import adapted
from conformance.judgement.outcomes import Inconclusive, require
from conformance.specification.features import ABSENT
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly, refuses
from conformance.target.subject import Instance, Subject, frozen_linear


@dataclass(frozen=True)
class PatchCase(LinearCase):
    """One linear layer and the options it is patched with.

    Fields:
        triton: `use_triton`.   rslora: `use_rslora`; alpha is then scale·√r.
        spelling: the form of lora_dtype: `torch.dtype`, `name` ("bfloat16") or `torch.name` ("torch.bfloat16").
        how: the variant, where a clause has several.
    """

    triton: bool = False
    rslora: bool = False
    spelling: str = "torch.dtype"
    how: str = ""


def _tamed(case: PatchCase) -> PatchCase:
    fitted = tamed(case)
    assert isinstance(fitted, PatchCase)
    return fitted


PATCH = Space(
    PatchCase,
    tame=_tamed,
    m=(1, 2, 3, 17),
    k=(1, 3, 16, 17, 33, 65),
    n=(1, 2, 5, 16, 33),
    r=(1, 2, 3, 4, 9),
    scale=(1.0, 2.0, 0.5, 4.0),
    bias=(False, True),
    values=("integers", "normal", "integers", "huge-term"),
    lead=("2d", "3d", "1d"),
    training=(True, False),
    triton=(False, True),
)
# for clauses about names, flags and objects, without numbers
LAYER = Space(
    PatchCase,
    k=(4, 1, 33),
    n=(4, 1, 5),
    r=(2, 1, 8),
    bias=(False, True),
    training=(True, False),
    triton=(False, True),
)


def linear(subject: Subject, case: LinearCase, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """An ordinary, trainable linear layer of the case's sizes, dtype and training flag."""
    seed_torch(case.seed)
    made = kind(case.k, case.n, bias=case.bias).to(subject.device, dtype=getattr(torch, case.dtype))
    return made.train(case.training)


def patch(subject: Subject, base: nn.Module, *arguments: Any, **options: Any) -> Any:
    """The result of the target's `patch_linear_module(base, …)`, which must be a patched layer."""
    with calling_quietly(f"patch_linear_module({type(base).__name__}{shown(arguments, options)})"):
        layer = subject.target.patch_linear_module(base, *arguments, **options)
    return require_adapter(layer, "the result of patch_linear_module")


def require_adapter(layer: Any, what: str) -> Any:
    """Require a module with weight, bias, lora_A and lora_B, and return it."""
    require(isinstance(layer, nn.Module), f"{what} is a {type(layer).__name__}: expected a patched nn.Linear")
    for name in ("weight", "lora_A", "lora_B"):
        found = getattr(layer, name, None)
        has = isinstance(found, torch.Tensor) or (name != "weight" and isinstance(found, nn.Module))
        require(has, f"{what}, a {type(layer).__name__}, has no {name}")
    require(hasattr(layer, "bias"), f"{what}, a {type(layer).__name__}, has no bias")
    return layer


def patch_case(subject: Subject, case: PatchCase, kind: type[nn.Linear] = nn.Linear, **options: Any) -> Any:
    """An ordinary linear layer of the case's sizes, patched with the case's rank."""
    return patch(subject, linear(subject, case, kind), dim=case.r, use_triton=case.triton, **options)


def patched(subject: Subject, operands: Operands, **options: Any) -> Instance:
    """A patched linear layer, ready to run, with the case's operands as weight, bias and adapter."""
    case = operands.case
    assert isinstance(case, PatchCase)
    base = frozen_linear(operands).requires_grad_(True).train(case.training)
    alpha = operands.scale * (math.sqrt(case.r) if case.rslora else case.r)
    arguments: dict[str, Any] = {"dim": case.r, "alpha": int(alpha) if alpha.is_integer() else alpha}
    if case.rslora:
        arguments["use_rslora"] = True
    if case.adapter != "same":
        arguments["lora_dtype"] = spelled(operands.adapter_dtype, case.spelling)
    layer = patch(subject, base, **arguments, use_triton=case.triton, **options)
    return bound(layer, operands)


def bound(layer: Any, operands: Operands) -> Instance:
    """A patched layer with the operands' lora_A and lora_B written into it."""
    require_adapter(layer, "the patched layer")
    tensors = {"weight": layer.weight, **{name: adapter_of(layer, name) for name in ("lora_A", "lora_B")}}
    if layer.bias is not None:
        tensors["bias"] = layer.bias
    for name in ("lora_A", "lora_B"):
        values = operands.tensor(name)
        assert values is not None
        found, wanted = (list(tensors[name].shape), tensors[name].dtype), (list(values.shape), values.dtype)
        require(found == wanted, f"{name} is {found[0]} {found[1]}: expected {wanted[0]} {wanted[1]}")
        with torch.no_grad():
            tensors[name].copy_(values)
    return Instance(layer, {"x": operands.placed["x"].tensor, **tensors}, operands, module=layer)


def spelled(dtype: torch.dtype, spelling: str) -> torch.dtype | str:
    """A dtype as a torch.dtype, as "bfloat16" or as "torch.bfloat16"."""
    if spelling == "torch.dtype":
        return dtype
    return str(dtype).removeprefix("torch.") if spelling == "name" else str(dtype)


@chooses_config
def config_class(subject: Subject) -> Any:
    """The target's PeftConfig, or the reference's where the target exposes none."""
    return getattr(subject.target, "PeftConfig", None) or reference.PeftConfig


def make_config(subject: Subject, **options: Any) -> Any:
    """A config with these options."""
    kind = config_class(subject)
    with calling_quietly(f"PeftConfig({shown((), options)[2:]})"):
        return kind(**options)


def apply(subject: Subject, model: nn.Module, **options: Any) -> Any:
    """The result of the target's `apply_lora_to_linear_modules(model, PeftConfig(…))`, with patterns in its rule."""
    options = in_its_rule(subject, model, options)
    return apply_config(subject, model, make_config(subject, **options), shown((), options)[2:])


def in_its_rule(subject: Subject, model: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """The options with each list of patterns written in the target's rule, so that it chooses the same modules."""
    rule = subject.convention("name_rule")
    if subject.follows("match_all", ABSENT) and options.get("match_all_linear"):
        options = {key: value for key, value in options.items() if key != "match_all_linear"}
        options["target_modules"] = ["*"]
    lists = [key for key in ("target_modules", "exclude_modules") if options.get(key)]
    if rule == DEFAULT or not lists:
        return options
    named = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if name]
    names = [name for name, _ in named if not {"lora_A", "lora_B"} & set(name.split("."))]
    linear = [name for name, module in named if isinstance(module, nn.Linear) and name in names]
    names = linear if subject.follows("linear_only", ABSENT) else names
    return {**options, **{key: _written(options[key], names, linear, rule) for key in lists}}


def _written(patterns: list[str], names: list[str], linear: list[str], rule: str) -> list[str]:
    wanted = chosen(patterns, names)
    if rule == "component":
        written = list(dict.fromkeys(name.split(".")[-1] for name in wanted))
    else:
        written = [re.escape(name) if rule == "regex" else name for name in wanted]
    if chosen(written, linear, rule) != chosen(patterns, linear):
        raise Inconclusive(f"the rule {rule!r} has no patterns for {', '.join(wanted[:3])} alone")
    return written or patterns


def apply_config(subject: Subject, model: nn.Module, config: Any, what: str) -> Any:
    """The result of the target's `apply_lora_to_linear_modules(model, config)`; messages call the config `what`."""
    with calling_quietly(applying(model, what)):
        return subject.thing(model, config)


def warned(subject: Subject, model: nn.Module, **options: Any) -> tuple[Any, str]:
    """Make the config and apply it: the result, and all warnings, those of `logging` included, as one text."""
    logged, root = _Logged(), logging.getLogger()
    options = in_its_rule(subject, model, options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kind = config_class(subject)
        root.addHandler(logged)
        try:
            with calling(applying(model, shown((), options)[2:])):
                count = subject.thing(model, kind(**options))
        finally:
            root.removeHandler(logged)
    return count, "\n".join([*(str(w.message) for w in caught), *logged.texts])


def refuses_all(subject: Subject, model: nn.Module, what: str, **options: Any) -> None:
    """Require that a config which chooses no layer is refused, by the name of its first pattern."""
    options = in_its_rule(subject, model, options)
    config = make_config(subject, **options)
    refuses(f"{what} of no layer", lambda: subject.thing(model, config), options["target_modules"][0])
    require(adapted(model) == [], f"{what} was refused after {adapted(model)} had been patched")


class _Logged(logging.Handler):
    """A log handler that keeps the texts of warnings and errors."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def applying(model: nn.Module, what: str) -> str:
    """The application of a config, as messages show it."""
    return f"apply_lora_to_linear_modules({type(model).__name__}, PeftConfig({what}))"


def shown(arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    """The arguments as they would be written after a first argument."""
    words = [repr(a) for a in arguments] + [f"{key}={value!r}" for key, value in options.items()]
    return "".join(f", {word}" for word in words)
