"""The assertion that a result somebody already has is right, within the error budget of its operands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraspec import distribution

if TYPE_CHECKING:
    from torch import Tensor


def assert_lora_close(
    y: Tensor | None = None,
    *,
    x: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    g: Tensor | None = None,
    dx: Tensor | None = None,
    dA: Tensor | None = None,
    dB: Tensor | None = None,
    dbias: Tensor | None = None,
    merged: Tensor | None = None,
) -> float:
    """Assert that results of a LoRA linear layer are right, without a tolerance: each element has its own budget.

    Args:
        y: [*, N], `x Wᵀ + b + scale·(x Aᵀ) Bᵀ`; the update alone where `weight` is None.
        x: [*, K].   weight: [N, K].   bias: [N].   lora_A: [r, K].   lora_B: [N, r].
        g: [*, N], the gradient of y from which `dx`, `dA`, `dB` and `dbias` were computed.
        merged: [N, K], the weight into which the update was merged; without `weight`, the update `scale·B A`.
    Returns:
        The worst error ÷ budget, at most 1.
    Raises:
        AssertionError: for every wrong result, with its worst element, error ÷ budget, and pattern.
        TypeError, ValueError: if an operand is missing, shapes do not chain, or the operands decide nothing because
            zeros, or a result without one of its terms, would pass.
    """
    gradients = {"dx": dx, "dA": dA, "dB": dB, "dbias": dbias}
    given = {name: value for name, value in {"y": y, **gradients, "merged": merged}.items() if value is not None}
    _check_complete(given, x=x, g=g, weight=weight, bias=bias)
    distribution.pin()
    from conformance.judgement.given_results import judge_given
    from conformance.judgement.outcomes import Violation

    operands = {"x": x, "g": g, "weight": weight, "bias": bias, "lora_A": lora_A, "lora_B": lora_B}
    try:
        return judge_given(given, operands, scale)
    except Violation as violation:
        raise AssertionError(str(violation)) from None


def _check_complete(
    given: dict[str, Tensor], *, x: Tensor | None, g: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> None:
    """Check that there is something to judge, and what it depends on."""
    gradients = [name for name in given if name.startswith("d")]
    if not given:
        raise ValueError("there is nothing to judge: expected y, dx, dA, dB, dbias or merged")
    if x is None and given.keys() != {"merged"}:
        raise ValueError(f"x is missing: {', '.join(name for name in given if name != 'merged')} depends on it")
    if g is None and gradients:
        raise ValueError(f"g, the gradient of y, is missing: {', '.join(gradients)} depends on it")
    if g is not None and not gradients:
        raise ValueError("g is given, but no gradient to judge: expected dx, dA, dB or dbias")
    if bias is not None and weight is None:
        raise ValueError("bias is given without weight, which means the update alone: expected both")
