"""The activations and their derivatives in float64, and the allowed error of evaluating them.

An activation is evaluated in float32 at least (float64 for float64), with unit roundoff u. Its error is larger than
u·|f(t)| where the usual formula loses digits:

- silu, t·σ(t): exp(-t) of a rounded argument is off by |t|·u of itself, so 8u·(1+|t|)·|f|;
- gelu, t·(1 + erf(t/√2))/2: the sum is off by u where it nearly cancels, so 8u·|t|; gelu_tanh as gelu;
- relu2: one product, 2u·|f|.

Slopes are sums of terms of up to 1 + |t| (silu: σ + f·(1-σ); gelu: Φ + t·φ), so 8u·(1+|t|). In gelu_tanh the factor
1 - tanh² of a cubic keeps an error of u until it is exactly 0, near |t| = 6, where the cubic is 11: 32u beside it.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from conformance.numerics.formats import Array

TINY = torch.finfo(torch.float32).smallest_normal  # below it 1/(1 + exp(-t)) is 0, because the exponential overflows
# upper bounds of |f″| and |f‴|; relu2 has no third derivative, and its second jumps at 0
BENDS = {"silu": (0.5, 0.5), "gelu": (0.8, 0.8), "gelu_tanh": (0.85, 1.0), "relu2": (2.0, 0.0)}
_C, _D = math.sqrt(2 / math.pi), 0.044715
_erfc = np.vectorize(math.erfc, otypes=[float])


def value(t: Array, activation: str) -> Array:
    """f(t)."""
    if activation == "silu":
        return np.asarray(t * _sigmoid(t))
    if activation == "gelu":
        return np.asarray(0.5 * t * _erfc(-t / math.sqrt(2)))
    if activation == "gelu_tanh":
        return np.asarray(t * _sigmoid(2 * _C * (t + _D * t**3)))
    return np.asarray(np.maximum(t, 0.0) ** 2)


def slope(t: Array, activation: str) -> Array:
    """f′(t)."""
    if activation == "silu":
        share = _sigmoid(t)
        return np.asarray(share + t * share * _sigmoid(-t))
    if activation == "gelu":
        return np.asarray(0.5 * _erfc(-t / math.sqrt(2)) + t * np.exp(-0.5 * t * t) / math.sqrt(2 * math.pi))
    if activation == "gelu_tanh":
        z = 2 * _C * (t + _D * t**3)
        return np.asarray(_sigmoid(z) + t * _sigmoid(z) * _sigmoid(-z) * 2 * _C * (1 + 3 * _D * t * t))
    return np.asarray(2 * np.maximum(t, 0.0))


def second(t: Array, activation: str) -> Array:
    """f″(t), by a central difference of f′."""
    if activation == "relu2":
        return np.where(t > 0, 2.0, 0.0)
    step = 1e-4
    return np.asarray((slope(t + step, activation) - slope(t - step, activation)) / (2 * step))


def bend(t: Array, activation: str, near: Array) -> Array:
    """An upper bound of |f″| between t - near and t + near."""
    most, third = BENDS[activation]
    if activation == "relu2":
        return np.where(t + near > 0, most, 0.0)
    here = np.abs(second(t, activation)) + third * near + 1e-6
    return np.asarray(np.minimum(np.minimum(most, here), 8 * _decay(np.abs(t) - near, activation)))


def slope_rest(t: Array, activation: str, near: Array) -> Array:
    """An upper bound of |f′(t + e) - f′(t) - e·f″(t)| for |e| up to near."""
    if activation == "relu2":
        return np.where(np.abs(t) <= near, 2 * near, 0.0)
    third = np.minimum(BENDS[activation][1], 8 * _decay(np.abs(t) - near, activation))
    return np.asarray(0.5 * third * near**2 + 1e-6 * near)


def _decay(size: Array, activation: str) -> Array:
    """A function that bounds |f″| and |f‴| by 8 times itself from |t| on: (2 + t)·e⁻ᵗ for silu, else (1 + t³)·φ(t)."""
    size = np.maximum(size, 0.0)
    if activation == "silu":
        return np.asarray((2 + size) * np.exp(-size))
    return np.asarray((1 + size**3) * np.exp(-0.5 * size**2))


def value_error(t: Array, activation: str, unit: float) -> Array:
    """The allowed error of an evaluation of f(t)."""
    size, f = np.abs(t), np.abs(value(t, activation))
    underflow = 8 * (1 + size) * TINY
    if activation == "relu2":
        return np.asarray(2 * unit * f + underflow)
    if activation == "silu":
        return np.asarray(8 * unit * (1 + size) * f + underflow)
    return np.asarray(8 * unit * size + underflow)


def slope_error(t: Array, activation: str, unit: float) -> Array:
    """The allowed error of an evaluation of f′(t)."""
    if activation == "relu2":
        return np.asarray(2 * unit * np.abs(slope(t, activation)))
    return np.asarray(
        unit * (8 * (1 + np.abs(t)) + (32 if activation == "gelu_tanh" else 0)) + 8 * (1 + np.abs(t)) * TINY
    )


def _sigmoid(t: Array) -> Array:
    small = np.exp(-np.abs(t))
    return np.asarray(np.where(t < 0, small, 1.0) / (1 + small))
