"""Gradients made from a case, with their exact norm and their expected values after clipping."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.cases.case import Case, Space
from conformance.cases.memory_layout import Placed, place
from conformance.cases.reproducer_marks import draws_values
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import Array, dtype_named, format_of, rounded
from conformance.target.subject import Subject

MUST_BE_WITHIN = 1e-3  # relative error of the norm


@dataclass(frozen=True)
class GradientsCase(Case):
    """The gradients of some parameters.

    Fields:
        elements: gradient elements in total.   tensors: the number of parameters they are spread over.
        values: `normal`; `equal` (all roundings of a sum go one way); `wide` (over many orders of magnitude);
            `large` (300 times as large: squares overflow float16); `huge` and `tiny` (squares leave the range of
            the dtype and of float32); `edge` (a norm half as large as the dtype's largest number); `small` (a norm
            near 1e-5, where the 1e-6 in the clip factor matters); `zero`.
        layout: the memory layout of every gradient.
        clip: max_norm ÷ norm.
        beside: further parameters in the list: `nothing`, those with `none` or `empty` gradients, or `both`.
        special: `nan` or `inf` in one element.
        other: dtype of every second gradient, `same` or another.
    """

    elements: int = 1
    tensors: int = 1
    values: str = "normal"
    layout: str = "packed"
    clip: float = 0.5
    beside: str = "nothing"
    special: str = "none"
    other: str = "same"


def tamed(case: GradientsCase) -> GradientsCase:
    """The case with no more tensors than elements, and its values in the range of its dtype."""
    narrow = case.dtype == "float16" and case.values in ("edge", "small", "wide")
    values = "normal" if narrow else case.values
    return dataclasses.replace(case, tensors=min(case.tensors, case.elements), values=values)


GRADIENTS = Space(
    GradientsCase,
    tame=tamed,
    elements=(1, 2, 3, 17, 64, 257, 1000, 4099),
    tensors=(1, 2, 3, 7, 40),
    values=("normal", "equal", "wide", "normal", "large"),
    beside=("nothing", "both"),
)
SIZES = {  # the typical element: its square is out of range while the norm of a few thousand is not
    "huge": {"float64": 1e160, "float32": 1e20, "bfloat16": 1e20, "float16": 1e4},
    "tiny": {"float64": 1e-170, "float32": 1e-30, "bfloat16": 1e-30, "float16": 1e-5},
}


class Gradients:
    """The parameters of a case with their gradients, each between margins, and the exact values they hold.

    With `finite_margins`, the margins hold a number instead of NaN, so that scaling them is noticed. With
    `narrow_norm`, the norm, and the norm of each gradient, is rounded to the dtype of the gradients.
    """

    def __init__(
        self, case: GradientsCase, device: str = "cpu", *, finite_margins: bool = False, narrow_norm: bool = False
    ) -> None:
        self.case, self.narrow_norm = case, narrow_norm
        self.dtypes = [
            dtype_named(case.other if case.other != "same" and i % 2 else case.dtype) for i in range(case.tensors)
        ]
        flat = _values(case)
        ends = np.linspace(0, case.elements, case.tensors + 1).astype(int)
        self.values: list[Array] = []
        for i, dtype in enumerate(self.dtypes):
            chunk = flat[ends[i] : ends[i + 1]]
            self.values.append(rounded(chunk.reshape(_shape(len(chunk), i)), dtype))
        self.placed: list[Placed] = []
        for values, dtype in zip(self.values, self.dtypes, strict=True):
            placed = place(values, dtype, case.layout, device)
            if finite_margins:
                placed.buffer.nan_to_num_(nan=5.0)
                placed = Placed(placed.tensor, placed.buffer, placed.buffer.clone())
            self.placed.append(placed)
        self.with_gradient = [_parameter(p.tensor) for p in self.placed]
        self.parameters = [*self.with_gradient]
        if case.beside in ("none", "both"):
            without = nn.Parameter(torch.ones(3, dtype=self.dtypes[0], device=device))
            self.parameters = [without, *self.parameters, without]
        if case.beside in ("empty", "both"):
            empty = torch.ones((0, 4), dtype=self.dtypes[0], device=device)
            self.parameters.insert(len(self.parameters) // 2, _parameter(empty))

    @classmethod
    def of(cls, subject: Subject, case: GradientsCase, **options: Any) -> Gradients:
        """The gradients of a case on a subject's device, with the norm that the subject's convention gives."""
        return cls(case, subject.device, narrow_norm=subject.follows("norm_dtype", "gradients"), **options)

    def __str__(self) -> str:
        tensors = "one tensor" if self.case.tensors == 1 else f"{self.case.tensors} tensors"
        what = f"gradients of {self.case.elements} elements in {tensors}"
        return what if self.case.beside == "nothing" else f"{what}, and parameters with {self._beside}"

    @property
    def _beside(self) -> str:
        return {"none": "no gradient", "empty": "an empty one"}.get(self.case.beside, "none or an empty one")

    @property
    def norm_dtype(self) -> torch.dtype:
        """float64 for float64 gradients, else float32; by the other convention what holds all gradients' dtypes."""
        if self.narrow_norm:
            return reduce(torch.promote_types, self.dtypes)
        return torch.float64 if torch.float64 in self.dtypes else torch.float32

    @property
    def _norm_error(self) -> float:
        """The relative error of the norm that is allowed: of its sum, and of the roundings to a narrow dtype."""
        narrow = max(format_of(dtype).unit for dtype in self.dtypes) + format_of(self.norm_dtype).unit
        return MUST_BE_WITHIN + self.narrow_norm * narrow

    @cached_property
    def norm(self) -> float:
        """The exact norm."""
        largest = max(float(np.abs(v).max(initial=0)) for v in self.values)
        if largest == 0 or not math.isfinite(largest):
            return largest
        wide = [(v / np.longdouble(largest)).astype(np.longdouble) for v in self.values]
        return float(largest * np.sqrt(sum((w * w).sum() for w in wide)))

    @property
    def max_norm(self) -> float:
        """The max_norm for the case's `clip`."""
        return self.case.clip * self.norm

    def expected_norm(self, *, ulps: float | None = None) -> Expected:
        """The norm within a relative error of 1e-3, or within `ulps` units in the last place."""
        spacing = np.spacing(np.float32(self.norm)) if self.norm_dtype != torch.float64 else np.spacing(self.norm)
        allowed = self.norm * self._norm_error if ulps is None else ulps * float(spacing)
        if self.narrow_norm:  # each gradient's norm may be subnormal in its dtype, and is rounded once more
            steps = sum(format_of(dtype).step for dtype in self.dtypes) + format_of(self.norm_dtype).step
            allowed = max(allowed, ulps * 2 * format_of(self.norm_dtype).unit * self.norm if ulps else 0.0) + steps
        return Expected("norm", np.array(self.norm), np.array(allowed), self.norm_dtype)

    def expected_clipped(self, max_norm: float, *, tight: bool = False) -> list[Expected]:
        """Each gradient times ``min(1, max_norm/(norm + 1e-6))``.

        The budget allows for the error of the norm and for the stores of the result and of the factor.
        """
        factor = min(1.0, max_norm / (self.norm + 1e-6))
        relative = 8 * format_of(self.norm_dtype).unit if tight else self._norm_error
        if self.narrow_norm:  # the factor is a sum and a quotient in the norm's dtype
            relative += 2 * format_of(self.norm_dtype).unit
        expected = []
        for i, (values, dtype) in enumerate(zip(self.values, self.dtypes, strict=True)):
            clipped = values * factor
            allowed = np.abs(clipped) * (relative + 3 * format_of(dtype).unit) + format_of(dtype).step
            expected.append(Expected(f"gradient {i} after clipping", clipped, allowed, dtype))
        return expected


def _parameter(gradient: torch.Tensor) -> nn.Parameter:
    parameter = nn.Parameter(torch.full(gradient.shape, 3.0, dtype=gradient.dtype, device=gradient.device))
    parameter.grad = gradient
    return parameter


def _shape(length: int, index: int) -> tuple[int, ...]:
    """A shape of `length` elements, with zero to three dimensions."""
    if length == 1:
        return ((), (1,), (1, 1))[index % 3]
    divisor = next((d for d in (8, 4, 3, 2, 5, 7, 17) if length % d == 0), 1)
    return ((divisor, length // divisor), (length,), (divisor, 1, length // divisor))[index % 3]


@draws_values
def _values(case: GradientsCase) -> Array:
    random = np.random.default_rng([case.seed, case.elements])
    values = random.standard_normal(case.elements)
    # no element near zero, so that the norm is never too small to decide
    values = np.where(np.abs(values) < 0.1, 0.1, values)
    if case.values == "equal":
        # its square is 1.03, which a float32 sum near 2^20 rounds to 1 at every step
        values = np.full(case.elements, 1.0149 * 2.0 ** random.integers(-3, 4))
    elif case.values == "wide":
        values *= 2.0 ** random.integers(-12, 13, case.elements)
    elif case.values == "large":
        values *= 300
    elif case.values in SIZES:
        values *= SIZES[case.values][case.dtype]
    elif case.values == "edge":
        values = values / np.linalg.norm(values) * (0.5 * torch.finfo(dtype_named(case.dtype)).max)
    elif case.values == "small":
        values *= 1e-5 / np.linalg.norm(values)
    elif case.values == "zero":
        values[:] = 0
    if case.special != "none":
        values[case.seed % case.elements] = float(case.special) * (-1) ** case.seed
    return values
