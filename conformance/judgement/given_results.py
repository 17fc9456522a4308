"""Judgement of results that somebody already has, against the oracle's values for the operands they came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conformance.judgement.given_operands import GivenOperands
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected, LinearOracle
from conformance.judgement.outcomes import Inconclusive, Violation

FORMULAS = {
    "y": "x Wᵀ + b + s·(x Aᵀ) Bᵀ",
    "dX": "g W + s·(g B) A",
    "dA": "s·(g B)ᵀ x",
    "dB": "s·gᵀ (x Aᵀ)",
    "dbias": "Σ g",
    "the merged weight": "W + s·B A",
}


def judge_given(results: Mapping[str, Any], operands: Mapping[str, Any], scale: float) -> float:
    """Judge every result; return the worst error ÷ budget.

    Args:
        results: some of `y`, `dx`, `dA`, `dB`, `dbias` and `merged`.
        operands: as `GivenOperands` takes them; without a weight, y is the update alone.
    Raises:
        ValueError, TypeError: if the operands are refused, or a wrong result would pass on them.
        Violation: for all results that are wrong.
    """
    given = GivenOperands(operands, scale)
    oracle = LinearOracle(given, base=operands.get("weight") is not None)
    ratios, wrong = [], []
    for name, result in results.items():
        expected = _expected(oracle, name)
        try:
            ratios.append(judge(result, expected))
        except Violation as violation:
            wrong.append(_told(violation, expected, base=oracle.base))
        except Inconclusive as reason:
            zero = [name for name, value in operands.items() if value is not None and not value.any()]
            raise ValueError(_undecided(reason, scale, zero)) from None
    if wrong:
        raise Violation("\n".join(wrong))
    return worst(*ratios) or 0.0


def _expected(oracle: LinearOracle, name: str) -> Expected:
    expected: Expected = getattr(oracle, {"dx": "dX", "merged": "merged_weight"}.get(name, name))
    return expected


def _told(violation: Violation, expected: Expected, *, base: bool) -> str:
    formula = FORMULAS[expected.name]
    if not base:
        formula = {"y": "s·(x Aᵀ) Bᵀ", "dX": "s·(g B) A", "the merged weight": "s·B A"}.get(expected.name, formula)
    return f"{expected.name} is not {formula} within the error budget of its operands\n{violation}"


def _undecided(reason: Inconclusive, scale: float, zero: list[str]) -> str:
    """Why these operands decide nothing, and what to change."""
    why = "the terms' magnitudes differ too much"
    if scale == 0:
        why = "scale is 0"
    elif zero:
        why = f"{' and '.join(zero)} {'is' if len(zero) == 1 else 'are'} zero everywhere"
    return f"{reason}, so these operands decide nothing ({why}): random operands of like magnitude decide"
