"""One small layer of a class, and where it holds its weight and the two matrices of its adapter."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.errors import UsageError
from conformance.target.draft.arguments import Argument

K, N, R, ALPHA = 5, 3, 2, 7  # all shapes and scales of such a layer differ
TOLERANCE = 1e-3  # of the largest element: a formula that is another one is off by far more


@dataclass(frozen=True)
class Place:
    """The place of a tensor in a layer.

    Attributes:
        source: the expression for the tensor, which begins with a dot and follows the layer's name.
        name: its dotted name, as `named_parameters` gives it.
        transposed: whether the tensor is the transpose of the matrix.   others: the names of others of the same shape.
    """

    source: str
    name: str
    tensor: Tensor
    transposed: bool = False
    others: tuple[str, ...] = ()

    @property
    def matrix(self) -> Tensor:
        """The matrix, lora_A [R, K] or lora_B [N, R]."""
        found = self.tensor.detach()
        return found.T if self.transposed else found

    @property
    def owner(self) -> str:
        """The expression for what holds the tensor."""
        return self.source.rpartition(".")[0]


@dataclass
class BuiltLayer:
    """A layer of K → N features and rank R, with drawn matrices.

    Attributes:
        base: the linear layer whose parameters it should have.   weight: None for a layer without the base product.
    """

    layer: nn.Module
    base: nn.Linear
    lora_A: Place
    lora_B: Place
    weight: Place | None = None
    bias: Place | None = None

    def update(self, x: Tensor) -> Tensor:
        """The adapter's term before the scale, (x Aᵀ) Bᵀ."""
        return x @ self.lora_A.matrix.T @ self.lora_B.matrix.T

    def factor(self, y: Tensor, x: Tensor) -> tuple[float | None, bool]:
        """The factor of the adapter's term in an output y of x, and whether the base term is missing."""
        update = self.update(x)
        for adapter_only in (False, True):
            term = y if adapter_only else y - F.linear(x, self.base.weight, self.base.bias)
            if term.shape != update.shape:
                return None, False
            factor = float((term * update).sum() / (update * update).sum())
            if (term - factor * update).abs().max() <= TOLERANCE * term.abs().max():
                return factor, adapter_only
        return None, False


def built(
    layer: type, found: Iterable[Argument], named: str, *, dropout: float = 0.0, alpha: float = ALPHA
) -> BuiltLayer:
    """A small layer, with the weight and bias of a linear layer.

    Raises:
        UsageError: if the class raises, or no two matrices of it have the shapes of an adapter.
    """
    base = nn.Linear(K, N).requires_grad_(False)
    meanings = {
        "base": base,
        "in": K,
        "out": N,
        "rank": R,
        "alpha": alpha,
        "alpha / dim": alpha / R,  # by its expression
        "alpha / dim**0.5": alpha / R**0.5,
        "scale": alpha / R,
        "dropout": dropout,
        "bias": True,
        "dtype": base.weight.dtype,
        "device": base.weight.device,
        "adapter": "default",
        "rslora": False,
        "merging": False,
        "weight": base.weight,
        "name": "layer",
    }
    given: dict[str, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given.update({argument.name: argument.value(meanings) for argument in found})
            made = layer(**given)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        shown = ", ".join(f"{name}={'Linear(5, 3)' if value is base else value}" for name, value in given.items())
        said = f"{type(error).__name__}: {error}"
        raise UsageError(f"{named} cannot be built: {layer.__name__}({shown}) raised {said}") from error
    return _read(made, base, named)


def _read(made: nn.Module, base: nn.Linear, named: str) -> BuiltLayer:
    places = list(_places(made))
    weight = _base_place(places, base.weight)
    bias = _base_place(places, base.bias) if weight is not None else None
    rest = [place for place in places if place not in (weight, bias)]
    held = ", ".join(f"{place.name} {list(place.tensor.shape)}" for place in places) or "no parameters"
    lora_A = _adapter_place(rest, (R, K), ("a", "down"))
    lora_B = _adapter_place(rest, (N, R), ("b", "up"))
    if lora_A is None or lora_B is None:
        shape = [R, K] if lora_A is None else [N, R]
        expected = f"expected a matrix {shape} or {shape[::-1]}"
        raise UsageError(f"{named} of rank {R} for {K} → {N} features holds {held}: {expected}")
    found = BuiltLayer(made, base, lora_A, lora_B, weight, bias)
    with torch.no_grad():
        if weight is not None and weight.tensor is not base.weight:
            weight.tensor.copy_(base.weight)
        if bias is not None and bias.tensor is not base.bias:
            bias.tensor.copy_(base.bias)
        for place in (lora_A, lora_B):
            place.tensor.copy_(torch.randn_like(place.tensor))
    return found


def _base_place(places: list[Place], expected: Tensor) -> Place | None:
    """The place of the base's weight or bias: the same tensor, or the first of its shape."""
    same = [place for place in places if place.tensor is expected]
    alike = [place for place in places if place.tensor.shape == expected.shape]
    return next(iter([*same, *alike]), None)


def _adapter_place(places: list[Place], shape: tuple[int, int], hints: tuple[str, ...]) -> Place | None:
    """The place of a matrix of the shape or its transpose; among several the one whose name has a hint."""
    fitting = [place for place in places if tuple(place.tensor.shape) in (shape, shape[::-1])]
    if not fitting:
        return None
    hinted = [place for place in fitting if set(place.name.lower().replace(".", "_").split("_")) & set(hints)]
    chosen = (hinted or fitting)[0]
    others = tuple(place.name for place in fitting if place is not chosen)
    transposed = tuple(chosen.tensor.shape) != shape
    return Place(chosen.source, chosen.name, chosen.tensor, transposed, others)


def _places(made: nn.Module) -> Iterator[Place]:
    """The places of all parameters and buffers."""
    for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
        yield Place(_expression(made, name), name, tensor)


def _expression(made: Any, name: str) -> str:
    """A dotted name as an expression: `lora_A.default.weight` is `.lora_A["default"].weight`."""
    found, thing = "", made
    for word in name.split("."):
        if isinstance(thing, nn.ModuleDict | nn.ParameterDict):
            found, thing = f"{found}[{json.dumps(word)}]", thing[word]
        elif isinstance(thing, nn.ModuleList | nn.Sequential | nn.ParameterList):
            found, thing = f"{found}[{word}]", thing[int(word)]
        else:
            found, thing = f"{found}.{word}", getattr(thing, word)
    return found
