"""Exact integer products modulo the prime of the ciphertexts, with floating-point matrix products."""

import torch
from torch import Tensor

LIMB = 26  # bits
SUMMED = 1 << 9  # results of `product` that may be added without an overflow
LARGEST = 1 << 25
"""The most that the absolute values in a row of the weight may sum to."""


def limbs(coefficients: Tensor) -> Tensor:
    """``[h, l]`` with ``c = h·2^26 + l``: int64 [*, n], from 0 to 2^52 - 1, as float64 [2, *, n]."""
    found = coefficients.new_empty((2, *coefficients.shape), dtype=torch.float64)
    found[0], found[1] = coefficients >> LIMB, coefficients & (1 << LIMB) - 1
    return found


def product(weight: Tensor, limbs: Tensor, modulus: int) -> Tensor:
    """Integers congruent to ``W C`` modulo q, exactly, and not reduced.

    The products of W with the limbs of C are sums below 2^51, which float64 holds exactly. ``W C = H·2^26 + L``; the
    first bits of H are reduced, so that this is below 2^53.

    Args:
        weight: int64 [N, K], with Σ_k |W[n, k]| <= 2^25 in every row.
        limbs: float64 [2, K, n], from `limbs`; both may have the sign of -c.
        modulus: q, from 2^52 - 2^26 to 2^52.
    Returns:
        int64 [N, n], of magnitude below 2^53, on the device of the limbs.
    Raises:
        ValueError: for a larger row of the weight, or a larger modulus.
    """
    if not 0 <= (1 << 2 * LIMB) - modulus <= 1 << LIMB:
        raise ValueError(f"modulus = {modulus}: expected 2^{2 * LIMB} - 2^{LIMB} to 2^{2 * LIMB}")
    largest = int(weight.abs().sum(dim=1).max()) if weight.numel() else 0
    if largest > LARGEST:
        raise ValueError(f"a row of the weight sums to {largest} in absolute values: expected at most {LARGEST}")
    high, low = torch.matmul(weight.to(limbs), limbs).unbind()
    # H·2^26 = H1·2^52 + H0·2^26, where H0 has 26 bits: every term and every sum is exact in float64
    first = high.mul(2.0**-LIMB).floor_()
    low.add_(high.sub_(first, alpha=2.0**LIMB), alpha=2.0**LIMB)
    low.add_(first, alpha=(1 << 2 * LIMB) % modulus)
    return low.long()


def shifted(polynomials: Tensor, by: int) -> Tensor:
    """``X^by · p`` modulo ``X^n + 1``: a rotation of the coefficients, those that pass the end negated.

    Args:
        polynomials: [*, n].   by: from -n to n.
    Returns:
        [*, n], of the same dtype.
    """
    size = polynomials.shape[-1]
    found = polynomials.roll(by, dims=-1)
    if by > 0:
        found[..., :by].neg_()
    elif by < 0:
        found[..., size + by :].neg_()
    return found
