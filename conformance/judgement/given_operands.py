"""The operands of a result that somebody already has: given tensors, checked, in place of a case's drawn values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.numerics.budget import Rounding
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.numerics.formats import Array, dtype_named, numbers


@dataclass(frozen=True)
class GivenCase(LinearCase):
    """The case of given operands, whose tokens have any leading dimensions."""

    tokens: tuple[int, ...] = ()

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading dimensions of x."""
        return self.tokens


class GivenOperands(Operands):
    """Operands made of given tensors.

    Args:
        given: `x`, `g`, `weight`, `bias`, `lora_A` and `lora_B`; None for those that are absent.
        scale: the factor of the update.
    Raises:
        TypeError: if an operand is no tensor, or the scale no number.
        ValueError: if shapes do not chain, dtypes differ or are not supported, or an operand is not finite.
    """

    def __init__(self, given: Mapping[str, Any], scale: float) -> None:
        self.scale = _number(scale)
        tensors = {name: value for name, value in given.items() if value is not None}
        for name, tensor in tensors.items():
            _check_tensor(name, tensor)
        _check_shapes(tensors)
        down, up = tensors["lora_A"], tensors["lora_B"]
        tokens = tuple(tensors["x"].shape[:-1]) if "x" in tensors else (1,)
        self.dtype = _common_dtype(tensors, ("x", "weight", "bias", "g"), down.dtype)
        self.adapter_dtype = _common_dtype(tensors, ("lora_A", "lora_B"), down.dtype)
        self.computed_in, self.device, self.shape = self.dtype, str(down.device), (*tokens, up.shape[0])
        self.case = GivenCase(
            m=math.prod(tokens),
            k=down.shape[1],
            n=up.shape[0],
            r=up.shape[1],
            scale=self.scale,
            bias="bias" in tensors,
            values="normal",
            dtype=str(self.dtype).removeprefix("torch."),
            tokens=tokens,
        )
        self.values = {name: numbers(tensor) for name, tensor in tensors.items()}
        absent = {"x": (*tokens, self.case.k), "g": self.shape, "weight": (self.case.n, self.case.k)}
        for name, shape in absent.items():
            self.values.setdefault(name, numbers(torch.zeros(shape, dtype=torch.float64)))

    @property
    def rounding(self) -> Rounding:
        """The budget's rounding; operands that repeat themselves have equal roundings, which add up."""
        repeated = any(_repeats(values) for values in map(self._rows_of, self.values))
        return Rounding(self.dtype, self.adapter_dtype, repeated)

    @property
    def degenerate(self) -> bool:
        """Never: operands on which a wrong result would pass are refused."""
        return False

    def _rows_of(self, name: str) -> Array:
        return self.rows(name) if name in ("x", "g") else self.values[name]


def _repeats(values: Array) -> bool:
    """Whether at most half of the rows, or of the columns, of a matrix differ."""
    if values.ndim != 2 or not values.any():
        return False
    return any(len(m) > 1 and 2 * len({row.tobytes() for row in m}) <= len(m) for m in (values, values.T))


def _number(scale: Any) -> float:
    if isinstance(scale, torch.Tensor) and scale.numel() == 1:
        scale = scale.item()
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale is {scale!r}: expected a number")
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale!r}: expected a finite number")
    return float(scale)


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is of type {type(tensor).__name__}: expected a torch.Tensor")
    if tensor.dtype not in map(dtype_named, FLOAT_DTYPES):
        raise ValueError(f"{name} is {tensor.dtype}: expected one of {', '.join(FLOAT_DTYPES)}")
    if tensor.numel() == 0:
        raise ValueError(f"{name} is {list(tensor.shape)}, without an element: there is nothing to judge")
    wrong = int((~torch.isfinite(tensor)).sum())
    if wrong:
        raise ValueError(f"{wrong} of {tensor.numel()} elements of {name} are not finite: expected finite operands")


def _check_shapes(tensors: Mapping[str, torch.Tensor]) -> None:
    for name, dimensions in (("weight", 2), ("lora_A", 2), ("lora_B", 2), ("bias", 1)):
        if name in tensors and tensors[name].ndim != dimensions:
            form = {"weight": "[N, K]", "lora_A": "[r, K]", "lora_B": "[N, r]", "bias": "[N]"}[name]
            raise ValueError(f"{name} is {_shape(tensors, name)}: expected {form}")
    (rank, features), width = tensors["lora_A"].shape, tensors["lora_B"].shape[0]
    if tensors["lora_B"].shape[1] != rank:
        _refuse(tensors, "lora_B", f"lora_A, {_shape(tensors, 'lora_A')}, has rank {rank}", [width, rank])
    if "x" in tensors and (tensors["x"].ndim == 0 or tensors["x"].shape[-1] != features):
        _refuse(tensors, "x", f"lora_A, {_shape(tensors, 'lora_A')}, takes {features} features", ["*", features])
    chain = f"lora_A and lora_B take {features} features and give {width}"
    if "weight" in tensors and tuple(tensors["weight"].shape) != (width, features):
        _refuse(tensors, "weight", chain, [width, features])
    if "bias" in tensors and tuple(tensors["bias"].shape) != (width,):
        _refuse(tensors, "bias", f"lora_B, {_shape(tensors, 'lora_B')}, gives {width} features", [width])
    if "g" in tensors:
        wanted = [*tensors["x"].shape[:-1], width]
        if list(tensors["g"].shape) != wanted:
            _refuse(tensors, "g", "it is the gradient of y", wanted)


def _refuse(tensors: Mapping[str, torch.Tensor], name: str, why: str, wanted: list[Any]) -> None:
    raise ValueError(f"{name} is {_shape(tensors, name)}, but {why}: expected [{', '.join(map(str, wanted))}]")


def _shape(tensors: Mapping[str, torch.Tensor], name: str) -> list[int]:
    return list(tensors[name].shape)


def _common_dtype(tensors: Mapping[str, torch.Tensor], names: tuple[str, ...], otherwise: torch.dtype) -> torch.dtype:
    found = {name: tensors[name].dtype for name in names if name in tensors}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} is {dtype}" for name, dtype in found.items())
        raise ValueError(f"{listed}: expected one dtype")
    return next(iter(found.values()), otherwise)
