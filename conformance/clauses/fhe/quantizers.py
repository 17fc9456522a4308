"""The quantisers as functions: their integers, scales and zero points."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.clauses.fhe.oracle import Quantized, by_column, by_range, by_row, symmetric
from conformance.clauses.fhe.quantized_case import LAYER, Problem, QuantizedCase
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject

CASES = LAYER.narrowed(
    values=("normal", "grid", "far", "ties", "constant", "tiny"), bias=(False,), n=(1,), m=(3, 2, 17)
)
TYPES = ("float64", "float32", "bfloat16")


def _same(name: str, got: Any, expected: Quantized) -> None:
    """Require exactly the integers, scales and zero points of the specification."""
    for part, want in (("values", expected.values), ("scale", expected.scale), ("zero_point", expected.zero)):
        with calling(f"reading {part} of what {name} returned"):
            seen = numbers(getattr(got, part))
        try:
            seen = np.broadcast_to(seen, np.broadcast_shapes(seen.shape, want.shape))
        except ValueError:
            require(False, f"{name} gave {part} of shape {list(seen.shape)}: expected {list(want.shape)}")
        wrong = seen != np.broadcast_to(want, seen.shape)
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            said = f"{part}{list(at)} {seen[at]:.17g}: expected {np.broadcast_to(want, seen.shape)[at]:.17g}"
            require(False, f"{name} gave {said}; {int(wrong.sum())} of {wrong.size} differ")


@clause(
    "FHE-QUANT-ROWS",
    sentence="""quantize_dynamic(x, n_bits) computes for each row s = (max - min)/(2ⁿ - 1), z = round(-min/s) and q =
    clamp(round(x/s) + z, 0, 2ⁿ - 1), in float64 by true division, rounding half to even; rows of equal elements are
    exact.""",
    cases=CASES,
    dtypes=TYPES,
    needs=("quantize_dynamic",),
)
def test_rows(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    with calling("quantize_dynamic(x, n_bits)"):
        got = subject.target.quantize_dynamic(problem["x"], case.n_bits)
    _same("quantize_dynamic", got, by_row(problem.values["x"], case.n_bits))
    return None


@clause(
    "FHE-QUANT-COLUMNS",
    sentence="""quantize_weight_columns(W, n_bits) computes for each output column s = (max - min)/(2ⁿ - 1), z =
    round(-2ⁿ⁻¹ - min/s) and q in [-2ⁿ⁻¹, 2ⁿ⁻¹ - 1]; columns of equal elements are exact.""",
    cases=CASES.narrowed(n=(3, 2, 17)),
    dtypes=TYPES,
    needs=("quantize_weight_columns",),
)
def test_columns(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    with calling("quantize_weight_columns(weight, n_bits)"):
        got = subject.target.quantize_weight_columns(problem["weight"], case.n_bits)
    _same("quantize_weight_columns", got, by_column(problem.values["weight"], case.n_bits))
    return None


@clause(
    "FHE-QUANT-RANGE",
    sentence="""quantize_static(x, low, high, n_bits) clamps x to [low, high], quantises it with one scale and zero
    point for this range, and also returns the number of elements that were clamped.""",
    cases=CASES.narrowed(values=("normal", "far", "ties"), how=("inside", "outside")),
    dtypes=TYPES,
    needs=("quantize_static",),
)
def test_quantised_range(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    values = problem.values["x"]
    low, high = float(values.min()), float(values.max())
    if case.how == "outside":
        low, high = float(np.quantile(values, 0.2)), float(np.quantile(values, 0.7))
    with calling("quantize_static(x, low, high, n_bits)"):
        got, clamped = subject.target.quantize_static(problem["x"], low, high, case.n_bits)
    count = int(((values < low) | (values > high)).sum())
    require(clamped == count, f"quantize_static counted {clamped} clamped elements: expected {count}")
    _same("quantize_static", got, by_range(values, low, high, case.n_bits))
    return None


@clause(
    "FHE-QUANT-WEIGHT",
    sentence="quantize_weight(W, n_bits) quantises all of W over one symmetric range: s = max|w|/(2ⁿ⁻¹ - 1), z = 0.",
    cases=CASES.narrowed(n=(3, 2, 17)),
    dtypes=TYPES,
    needs=("quantize_weight",),
)
def test_weight(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    with calling("quantize_weight(weight, n_bits)"):
        got = subject.target.quantize_weight(problem["weight"], case.n_bits)
    _same("quantize_weight", got, symmetric(problem.values["weight"], case.n_bits))
    return None
