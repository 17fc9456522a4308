"""The floating-point formats of the error budget: unit roundoff, largest value, smallest step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Format:
    """A binary floating-point format with round to nearest even.

    Attributes:
        unit: unit roundoff u, half the gap above 1.
        step: smallest positive subnormal.
        largest: largest finite value.
        exact: integers of at most this magnitude are all representable.
    """

    unit: float
    step: float
    largest: float
    exact: int


@lru_cache
def format_of(dtype: torch.dtype) -> Format:
    """The format of a torch dtype (float64, float32, bfloat16, float16)."""
    info = torch.finfo(dtype)
    return Format(info.eps / 2, info.smallest_normal * info.eps, info.max, round(2 / info.eps))


def accumulator_unit(dtype: torch.dtype) -> float:
    """Unit roundoff of the narrowest accumulator the semantics allow: float32's, float64's in float64."""
    return format_of(torch.float64 if dtype == torch.float64 else torch.float32).unit


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype of a name: `torch.bfloat16` for `"bfloat16"`."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def rounded(values: Array, dtype: torch.dtype) -> Array:
    """The values rounded to a dtype, as float64."""
    if dtype == torch.float64:
        return values
    return numbers(torch.from_numpy(np.ascontiguousarray(values)).to(dtype))


def numbers(tensor: torch.Tensor) -> Array:
    """A tensor's values as a float64 array; exact for every supported dtype."""
    array: Array = tensor.detach().to("cpu", torch.float64).numpy()
    return array
