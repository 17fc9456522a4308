"""What a small built layer is measured to do: its factor, its dropout, its adapter in another dtype, its merging."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.errors import UsageError
from conformance.target.draft.arguments import Argument, meanings_of
from conformance.target.draft.built_layer import ALPHA, TOLERANCE, BuiltLayer, K, R, built
from conformance.target.draft.measured_conventions import Followed, followed
from conformance.target.draft.refused_uses import refused


@dataclass(frozen=True)
class MeasuredLayer:
    """What was measured of a class's layers.

    Attributes:
        factor: the s of y = x Wᵀ + b + s·(x Aᵀ) Bᵀ; None if the layer computes no such thing.
        adapter_only: whether the layer computes the adapter's term alone.
        scale: the expression of the attribute that holds the factor, after the layer's name; None if there is none.
        dropout: the positions at which its dropout acts.
        any_adapter_dtype: whether the adapter may have another dtype than x.
        merges: whether it has `merge` and `unmerge`, and they leave the output alone.
        refused: the features that it lacks because it raises: pickling, autocast, a change of its output in place.
        scales_early: whether the update is scaled before (x Aᵀ) Bᵀ can overflow.
        merges_in_eval: whether eval() merges the adapter into the weight.
        followed: the conventions that it follows otherwise.
    """

    factor: float | None
    adapter_only: bool
    scale: str | None
    dropout: tuple[str, ...]
    any_adapter_dtype: bool
    merges: bool
    refused: tuple[str, ...]
    scales_early: bool
    merges_in_eval: bool
    followed: tuple[Followed, ...]


def measured(layer: type, found: tuple[Argument, ...], made: BuiltLayer, named: str) -> MeasuredLayer:
    """What a class's layers do.

    Args:
        made: one of them.   named: the class as messages name it.
    Raises:
        UsageError: if a layer cannot be called, or does not return a tensor.
    """
    x = torch.randn(7, K)
    factor, adapter_only = made.factor(_called(made.layer, x, named), x)
    dropout: tuple[str, ...] = ()
    if factor is not None and "dropout" in meanings_of(found):
        dropout = _dropout(built(layer, found, named, dropout=0.5), adapter_only, factor)
    merges = _merges(built(layer, found, named), x)
    return MeasuredLayer(
        factor,
        adapter_only,
        _scale(made.layer, factor),
        dropout,
        _any_adapter_dtype(built(layer, found, named), x),
        merges,
        refused(built(layer, found, named).layer, x),
        _scales_early(built(layer, found, named), factor),
        _merges_in_eval(built(layer, found, named)),
        tuple(followed(layer, found, named, x, merges=merges)),
    )


def _called(layer: nn.Module, x: Tensor, named: str) -> Tensor:
    try:
        y = _output(layer, x)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
        raise UsageError(f"a layer of {named} cannot be called on x [7, {K}]: it raised {said}") from error
    if not isinstance(y, Tensor):
        raise UsageError(f"a layer of {named} returns {type(y).__name__} for x [7, {K}]: expected a tensor")
    return y


def _output(layer: nn.Module, x: Tensor) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return layer(x)


def _dropout(made: BuiltLayer, adapter_only: bool, factor: float) -> tuple[str, ...]:
    """The position at which dropout of probability one half acts; none where it acts elsewhere or never.

    Each row of x has one element that is not zero. Dropout before the adapter takes all of a row's term or none of it;
    dropout after the adapter takes single elements.
    """
    x = torch.eye(K).repeat(40, 1)
    try:
        made.layer.train()
        y = _output(made.layer, x)
    except Exception:  # noqa: BLE001  (it does not act then; the clauses on dropout will say more)
        return ()
    term = y if adapter_only else y - F.linear(x, made.base.weight, made.base.bias)
    share = term / (factor * made.update(x))
    gone, doubled = share.abs() < 0.01, (share - 2).abs() < 0.01
    if not bool((gone | doubled).all()):
        return ("mid",) if _drops_the_middle(made, x, term / factor) else ()
    if not bool(gone.any()):
        return ()
    whole_rows = bool((gone.all(1) | doubled.all(1)).all())
    return ("pre",) if whole_rows else ("post",)


def _drops_the_middle(made: BuiltLayer, x: Tensor, term: Tensor) -> bool:
    """Whether each element of x Aᵀ was dropped or doubled before B multiplied it."""
    middle = x @ made.lora_A.matrix.T
    share = term @ torch.linalg.pinv(made.lora_B.matrix).T / middle
    return bool(((share.abs() < 0.01) | ((share - 2).abs() < 0.01)).all())


def _any_adapter_dtype(made: BuiltLayer, x: Tensor) -> bool:
    expected = _output(made.layer, x)
    for place in (made.lora_A, made.lora_B):
        place.tensor.data = place.tensor.data.double()
    try:
        y = _output(made.layer, x)
    except Exception:  # noqa: BLE001  (most layers refuse it in words of torch's)
        return False
    return y.dtype == x.dtype and torch.allclose(y, expected, rtol=TOLERANCE, atol=TOLERANCE)


def _scales_early(made: BuiltLayer, factor: float | None) -> bool:
    """Whether the scale multiplies before the second product: s·(x Aᵀ) Bᵀ is a number where (x Aᵀ) Bᵀ underflows."""
    if factor is None or factor <= 1:
        return False
    with torch.no_grad():
        for place in filter(None, (made.weight, made.bias, made.lora_A, made.lora_B)):
            place.tensor.zero_()
        for place in (made.lora_A, made.lora_B):
            place.tensor[0, 0] = 2.0**-75  # whose square rounds to 0 in float32
    y = _output(made.layer, torch.eye(1, K))
    return bool(y.any())


def _merges_in_eval(made: BuiltLayer) -> bool:
    if made.weight is None:
        return False
    made.layer.train()
    before = made.weight.tensor.detach().clone()
    made.layer.eval()
    return not torch.equal(made.weight.tensor, before)


def _merges(made: BuiltLayer, x: Tensor) -> bool:
    layer: Any = made.layer
    if not callable(getattr(layer, "merge", None)) or not callable(getattr(layer, "unmerge", None)):
        return False
    try:
        layer.eval()
        before = _output(layer, x)
        layer.merge()
        after = _output(layer, x)
        layer.unmerge()
    except Exception:  # noqa: BLE001  (it takes arguments, or is something else of the same name)
        return False
    return torch.allclose(before, after, rtol=TOLERANCE, atol=TOLERANCE)


def _scale(layer: nn.Module, factor: float | None) -> str | None:
    """The expression of the attribute that holds the factor, one that is named after a scale before others."""
    if factor is None:
        return None
    held = [source for source, value in _numbers(layer) if math.isclose(value, factor, rel_tol=TOLERANCE)]
    scales = [source for source in held if "scal" in source.rpartition(".")[2].lower()]
    if scales or not math.isclose(factor, ALPHA / R, rel_tol=TOLERANCE):  # many attributes are 1
        held = scales
    return next(iter(held), None)


def _numbers(layer: nn.Module) -> Iterator[tuple[str, float]]:
    """The attributes that are numbers, and those that hold one number under one key."""
    for name, module in layer.named_modules():
        prefix = f".{name}" if name else ""
        if not _is_plain(name, layer):
            continue
        for attribute, value in _attributes(module):
            key, number = _number(value)
            if number is not None:
                yield f"{prefix}.{attribute}{key}", number
            elif dataclasses.is_dataclass(value) and not isinstance(value, type):
                own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
                for inner, held in [*own.items(), *_properties(value)]:
                    if (number := _number(held)[1]) is not None:
                        yield f"{prefix}.{attribute}.{inner}", number


def _number(value: Any) -> tuple[str, float | None]:
    """A number, with the key in brackets under which a dictionary holds it; None for anything else."""
    key = ""
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value)), str):
        word = next(iter(value))
        key, value = f"[{json.dumps(word)}]", value[word]
    if isinstance(value, Tensor) and value.ndim == 0:
        value = float(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return key, float(value) if is_number else None


def _attributes(module: nn.Module) -> Iterable[tuple[str, Any]]:
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return [*own.items(), *module._buffers.items(), *_properties(module)]


def _properties(module: Any) -> Iterator[tuple[str, Any]]:
    for name in dir(type(module)):
        if isinstance(getattr(type(module), name, None), property) and "scal" in name:
            try:
                yield name, getattr(module, name)
            except Exception:  # noqa: BLE001  (a property that cannot be read holds nothing)
                continue


def _is_plain(name: str, layer: nn.Module) -> bool:
    """Whether a module's dotted name is an expression: words that are attributes."""
    thing: Any = layer
    for word in name.split(".") if name else ():
        if not word.isidentifier() or isinstance(thing, nn.ModuleDict):
            return False
        thing = getattr(thing, word)
    return True
