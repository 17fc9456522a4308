"""A quantised linear layer: its case, its operands in memory, and the expected y and dX."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.cases.case import Case, Space
from conformance.cases.linear_case import leading_dimensions
from conformance.cases.memory_layout import Placed, place
from conformance.cases.reproducer_marks import draws_values
from conformance.clauses.fhe.oracle import Product, by_column, by_range, by_row, symmetric
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import Array, dtype_named, rounded


@dataclass(frozen=True)
class QuantizedCase(Case):
    """A layer on integers.

    Fields:
        m: rows.   k, n: features in and out.   n_bits: of inputs and weight.
        values: `grid` (every scale is a power of two, so that only the last cast rounds), `normal`,
            `far` (rows and columns far from zero), `ties` (every x/s half-way between two integers), `constant`
            (rows and columns of equal elements, among others), `wide` (products beyond 2^24), `tiny` and `huge` (each
            row of another magnitude), `narrow` (a range of a millionth of the distance from zero).
        side: the pass whose weight lies on the grid, forward or backward.
        lead: the number of leading dimensions.   x, g, w: layouts.   how: the variant, where a clause has several.
        sizes: the relation between m, k and n, as in a LinearCase.
    """

    m: int = 2
    k: int = 3
    n: int = 2
    n_bits: int = 8
    bias: bool = False
    values: str = "grid"
    side: str = "forward"
    lead: str = "2d"
    x: str = "packed"
    g: str = "packed"
    w: str = "packed"
    how: str = ""
    sizes: str = "free"

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading dimensions of x."""
        return leading_dimensions(self.m, self.lead)


def _tamed(case: QuantizedCase) -> QuantizedCase:
    """The case with sizes and layouts that its other fields allow."""
    if case.lead == "1d" and case.m != 1:
        case = dataclasses.replace(case, m=1)
    for name in ("x", "g"):
        if getattr(case, name) == "expanded" and case.lead != "2d":
            case = dataclasses.replace(case, **{name: "packed"})  # type: ignore[arg-type]
    return case


LAYER = Space(
    QuantizedCase,
    tame=_tamed,
    m=(2, 1, 3, 17),
    k=(3, 1, 2, 17, 33, 65),
    n=(2, 1, 5, 16, 33),
    n_bits=(8, 2, 3, 4, 5, 6, 7),
    bias=(False, True),
    values=("grid", "normal", "grid", "far"),
)
DISTINCT = 100  # rows drawn one by one; further rows repeat them, since clauses with thousands of rows judge only noise
SMALL = LAYER.narrowed(m=(2, 3, 5), k=(3, 5, 17), n=(2, 5, 16), n_bits=(8, 4, 6))


class Problem:
    """The operands of a case: their values, and tensors inside guarded memory."""

    def __init__(self, case: QuantizedCase, device: str = "cpu") -> None:
        self.case, self.dtype = case, dtype_named(case.dtype)
        self.values = {name: rounded(values, self.dtype) for name, values in _drawn(case).items()}
        if not case.bias:
            del self.values["bias"]
        layouts = {"x": case.x, "g": case.g, "weight": case.w}
        self.placed: dict[str, Placed] = {
            name: place(values, self.dtype, layouts.get(name, "packed"), device) for name, values in self.values.items()
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor of that name."""
        return self.placed[name].tensor

    @property
    def weight(self) -> nn.Parameter:
        """The weight [N, K], frozen."""
        return nn.Parameter(self["weight"], requires_grad=False)

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, frozen, if there is one."""
        return nn.Parameter(self["bias"], requires_grad=False) if self.case.bias else None

    def rows(self, name: str) -> Array:
        """x or g as a matrix."""
        values = self.values[name]
        return values.reshape(math.prod(self.case.leading), values.shape[-1])

    def forward(self, limits: tuple[float, float] | None = None) -> Product:
        """The forward product, with inputs quantised per row, or over a range if limits are given."""
        return self._product("x", self.values["weight"], self.values.get("bias"), limits)

    def backward(self, limits: tuple[float, float] | None = None) -> Product:
        """The backward product, quantised in the same way."""
        return self._product("g", self.values["weight"].T, None, limits)

    def _product(self, name: str, weight: Array, bias: Array | None, limits: tuple[float, float] | None) -> Product:
        n_bits = self.case.n_bits
        if limits is None:
            return Product(by_row(self.rows(name), n_bits), by_column(weight, n_bits), bias)
        return Product(by_range(self.rows(name), *limits, n_bits), symmetric(weight, n_bits), bias)

    def y(self, limits: tuple[float, float] | None = None, *, each_term: bool = False) -> Expected:
        """The expected output of the layer."""
        shape = (*self.case.leading, self.case.n)
        return self.forward(limits).expected("y", self.dtype, shape, each_term=each_term)

    def dX(self, limits: tuple[float, float] | None = None, *, each_term: bool = False) -> Expected:
        """The expected gradient of x."""
        shape = (*self.case.leading, self.case.k)
        return self.backward(limits).expected("dX", self.dtype, shape, each_term=each_term)


@draws_values
def _drawn(case: QuantizedCase) -> dict[str, Array]:
    """The numbers of a case, not yet rounded to its dtype."""
    random = np.random.default_rng([case.seed, case.m, case.k, case.n, case.n_bits])
    about_zero = dict.fromkeys(("normal", "far", "tiny", "huge", "narrow"), _about_zero)
    draw = {"constant": _constant, "wide": _wide, **about_zero}.get(case.values, _on_grid)
    rows = math.prod(case.leading)
    x, g = draw(case, random, rows, case.k), draw(case, random, rows, case.n)
    weight = draw(case, random, case.n, case.k) if case.side == "forward" else draw(case, random, case.k, case.n).T
    bias = np.where(random.random(case.n) < 0.5, 1.0, -1.0) * random.integers(1, 64, case.n) / 4
    for name, values in (("x", x), ("g", g)):
        if getattr(case, name) == "expanded":
            values[...] = values[:1]
    return {
        "x": x.reshape(*case.leading, case.k),
        "g": g.reshape(*case.leading, case.n),
        "weight": np.ascontiguousarray(weight),
        "bias": bias,
    }


def _on_grid(case: QuantizedCase, random: np.random.Generator, rows: int, features: int) -> Array:
    """Rows whose step (max - min)/(2ⁿ - 1) is a power of two; for `ties`, elements half-way between steps."""
    levels = 2**case.n_bits - 1
    q = random.integers(0, levels + 1, (rows, features))
    for row in q[:DISTINCT] if features > 1 else ():
        first, last = random.choice(features, 2, replace=False)
        row[first], row[last] = 0, levels
    q = np.resize(q[:DISTINCT], q.shape) if rows > DISTINCT else q
    zero = random.integers(0, levels + 1, (rows, 1)) + (0.5 if case.values == "ties" else 0)
    step = 2.0 ** random.integers(-4, 1, (rows, 1))
    if case.values == "ties":  # the reciprocals of these steps round, so that x/s differs from x·(1/s)
        step = step * random.choice([1, 3, 49, 103], (rows, 1))
    return np.asarray((q - zero) * step)


def _about_zero(case: QuantizedCase, random: np.random.Generator, rows: int, features: int) -> Array:
    """Normal numbers of order one, scaled or shifted for `tiny`, `huge`, `narrow` and `far`."""
    values = random.standard_normal((rows, features))
    if case.values in ("tiny", "huge"):
        orders = random.integers(24, 50, (rows, 1))
        values = values * 2.0 ** (orders if case.values == "huge" else -orders)
    if case.values == "narrow":
        values = np.where(random.random((rows, 1)) < 0.5, 1.0, -1.0) * (1 + values * 2.0**-19)
    if case.values == "far":
        values = values / 8 + np.where(random.random((rows, 1)) < 0.5, 1.0, -1.0) * random.integers(8, 24, (rows, 1))
    return np.asarray(values)


def _constant(case: QuantizedCase, random: np.random.Generator, rows: int, features: int) -> Array:
    """Rows of equal elements, and some rows on the grid."""
    values = _on_grid(case, random, rows, features)
    constants = random.permutation([0.3, 1 / 16, -0.3, -1 / 16, 0.0, 1 / 3, 2.5, -40.0])
    for row in range(rows):
        if random.random() < 0.8:
            values[row] = constants[row % len(constants)]
    return values


def _wide(case: QuantizedCase, random: np.random.Generator, rows: int, features: int) -> Array:
    """Rows on the grid with most elements at its upper end, so that sums grow fast."""
    levels = 2**case.n_bits - 1
    q = np.where(random.random((rows, features)) < 0.9, levels, random.integers(0, levels + 1, (rows, features)))
    q[:, random.integers(0, features, 1)] = 0
    return np.asarray(q * 2.0 ** random.integers(-4, 1, (rows, 1)))


def problem_in_floats(problem: Problem) -> Any:
    """The expected output of the float layer, with a budget for the rounding of its products."""
    values = problem.rows("x") @ problem.values["weight"].T
    absolute = abs(problem.rows("x")) @ abs(problem.values["weight"]).T
    if "bias" in problem.values:
        values, absolute = values + problem.values["bias"], absolute + abs(problem.values["bias"])
    unit = torch.finfo(problem.dtype).eps
    shape = problem.values["g"].shape
    allowed = unit * (abs(values) + (problem.case.k + 2) * absolute)
    expected = problem.y()
    return dataclasses.replace(expected, value=values.reshape(shape), budget=allowed.reshape(shape), terms={})
