"""The check of a layer's form on one small layer: what is missing, or of another form than the suite's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from conformance.judgement.outcomes import Refused, Violation
from conformance.numerics.formats import dtype_named
from conformance.specification.features import ABSENT
from conformance.target.adapter_tensors import MAGNITUDE, adapter_of, is_magnitude, only_entry, scale_of
from conformance.target.expected_errors import calling_quietly
from conformance.target.layer_form import LAYERS, LayerForm
from conformance.target.limits import BIAS
from conformance.target.signature import arguments_for

K, N, R, ALPHA = 3, 5, 2, 14  # all different, so that a shape or a scale tells what it is
SHAPES = {"lora_A": (R, K), "lora_B": (N, R)}
SIZES = {K: "K", N: "N", R: "r", 1: "1"}
ARGUMENTS = f"dim={R}, alpha={ALPHA}"


def forms_of(target: Any, dtype: str, *, dora: bool) -> tuple[LayerForm, ...]:
    """What is missing or of another form in each layer of a target.

    Args:
        target: a `Target`.   dtype: the dtype of the linear layer.   dora: whether its layers have `use_dora`.
    """
    names = [name for name in LAYERS if target.has(name)]
    return tuple(form for name in names for form in _forms(name, getattr(target.thing, name), target, dtype, dora))


def _forms(name: str, kind: Any, target: Any, dtype: str, dora: bool) -> Iterator[LayerForm]:
    bias = target.feature(BIAS, "layer") != ABSENT
    base = nn.Linear(K, N, bias=bias, device=target.device, dtype=dtype_named(dtype)).requires_grad_(False)
    try:
        with calling_quietly(f"{name}({_shown(base)}, {ARGUMENTS})"):
            layer = kind(base, **arguments_for(kind, {"dim": R, "alpha": ALPHA}))
    except (Violation, Refused) as outcome:
        yield LayerForm(name, str(outcome), "def __init__(self, orig_linear, dim=8, alpha=32, …)", f"{name}(")
        return
    for part, shape in SHAPES.items():
        yield from _adapter(name, layer, part, shape)
    for part in ("weight", "bias"):
        yield from _base(name, layer, part, getattr(base, part))
    yield from _scale(name, layer)
    if dora:
        yield from _magnitude(name, kind, base)


def _shown(base: nn.Linear) -> str:
    return f"nn.Linear({K}, {N}{'' if base.bias is not None else ', bias=False'})"


def _adapter(name: str, layer: Any, part: str, shape: tuple[int, int]) -> Iterator[LayerForm]:
    held, problem = _read(layer, part)
    fails = f"reading {part} raised"
    if held is None:
        found = _path(layer, lambda p: tuple(p.shape) == shape)
        sizes = "orig_linear.in_features, dim" if part == "lora_A" else "dim, orig_linear.out_features"
        new = f"self.{part} = nn.Linear({sizes}, bias=False)"
        yield LayerForm(name, f"{name} {problem or f'has no {part}'}", _property(part, found) or new, fails)
        return
    try:
        tensor: Any = adapter_of(layer, part)
    except (Violation, Refused):
        # a property of this name would hide the module from the layer's own forward
        kind = f"{type(layer).__module__}:{type(layer).__qualname__}"
        seen = (
            f"{name}.{part} is a {type(held).__name__} without weight: `loraspec init --layer {kind}` wraps the layer"
        )
        yield LayerForm(name, seen, "", fails)
        return
    if tuple(tensor.shape) != shape:
        line = f"self.{part} = nn.Parameter({part}.T)  # {_letters(shape)}"
        seen = f"{name}.{part} is {_letters(tensor.shape)}: expected {_letters(shape)}"
        yield LayerForm(name, seen, line, f"{part} has shape")
    elif (entry := only_entry(held)) is not held:
        where = f"{part}[{next(iter(held.keys()))!r}]" + ("" if entry is tensor else ".weight")
        yield LayerForm(name, f"{name}.{part} is a {type(held).__name__} of one adapter: taken as {where}")
    elif held is tensor:
        yield LayerForm(name, f"{name}.{part} is a {type(held).__name__} without a module: taken as {part}.weight")


def _base(name: str, layer: Any, part: str, expected: torch.Tensor | None) -> Iterator[LayerForm]:
    held, problem = _read(layer, part)
    if held is not None or expected is None:
        return
    found = _path(layer, lambda p: p is expected or p.data_ptr() == expected.data_ptr())
    if found and not problem and not hasattr(layer, part):
        yield LayerForm(name, f"{name} has no {part}: taken from {found}")
        return
    if part == "weight" or problem or not hasattr(layer, part):
        line = _property(part, found) or f"self.{part} = orig_linear.{part}"
        yield LayerForm(name, f"{name} {problem or f'has no {part}'}", line, f"reading {name}.weight and bias raised")


def _scale(name: str, layer: Any) -> Iterator[LayerForm]:
    try:
        if scale_of(layer) is not None:
            return
    except Exception as error:  # noqa: BLE001  (what the target's property raises)
        problem = f"{name}.scale raised {type(error).__name__}: {error}"
        yield LayerForm(name, problem, "self.scale = alpha / dim", f"{name}.scale raised")
        return
    own = [key for key, value in vars(layer).items() if isinstance(value, int | float) and value == ALPHA / R]
    yield LayerForm(name, f"{name} has no scale: only y tells it", _property("scale", next(iter(own), "")))


def _magnitude(name: str, kind: Any, base: nn.Linear) -> Iterator[LayerForm]:
    try:
        with calling_quietly(f"{name}({_shown(base)}, {ARGUMENTS}, use_dora=True)"):
            layer = kind(base, **arguments_for(kind, {"dim": R, "alpha": ALPHA, "use_dora": True}))
    except (Violation, Refused) as outcome:
        yield LayerForm(name, str(outcome), "def __init__(self, …, *, use_dora=False)", f"{name}(")
        return
    held, problem = _read(layer, MAGNITUDE)
    if held is None:
        found = _path(layer, lambda p: is_magnitude(p, N) and p is not base.bias)
        line = _property(MAGNITUDE, found) or f"self.{MAGNITUDE} = nn.Parameter(orig_linear.weight.norm(dim=1))"
        yield LayerForm(name, f"{name} {problem or f'has no {MAGNITUDE}'}", line, f"reading {MAGNITUDE} raised")
        return
    entry = only_entry(held)
    shape = tuple(getattr(getattr(entry, "weight", entry), "shape", ()))
    if shape == (N, 1):
        yield LayerForm(name, f"{name}.{MAGNITUDE} is [N, 1]: taken as [N]")
    elif shape != (N,):
        line = f"self.{MAGNITUDE} = nn.Parameter(orig_linear.weight.norm(dim=1))  # [N]"
        yield LayerForm(name, f"{name}.{MAGNITUDE} is {_letters(shape)}: expected [N]", line, f"{MAGNITUDE} has shape")


def _read(layer: Any, part: str) -> tuple[Any, str]:
    """An attribute of a layer, None if there is none; and what reading it raised, other than AttributeError."""
    try:
        return getattr(layer, part, None), ""
    except Exception as error:  # noqa: BLE001  (what the target's property raises)
        return None, f"raised {type(error).__name__} for {part}: {error}"


def _path(layer: Any, fits: Any) -> str:
    """The dotted name of the only parameter of a layer that fits; empty if there are several or none."""
    parameters: Mapping[str, torch.Tensor] = dict(layer.named_parameters()) if isinstance(layer, nn.Module) else {}
    found = [path for path, parameter in parameters.items() if fits(parameter)]
    return found[0] if len(found) == 1 else ""


def _property(part: str, path: str) -> str:
    """The line of a class that gives one of its attributes another name; empty without a path."""
    return f"{part} = property(lambda self: self.{path})" if path else ""


def _letters(shape: Any) -> str:
    """A shape with the letters of its sizes, `[r, K]`."""
    return f"[{', '.join(SIZES.get(size, str(size)) for size in shape)}]"
