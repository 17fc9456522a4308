"""The gates of small experts in float64: their values, their slopes, and the errors of both near an argument."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from conformance.numerics.formats import Array

ALPHA, LIMIT = 1.702, 7.0  # of GPT-OSS
EVALUATION = 8.0  # roundings in one evaluation of a gate or of its slope, each relative to its largest summand


@dataclass(frozen=True)
class Curve:
    """A function of one argument or two, elementwise, with its slopes.

    Attributes:
        split: the arguments, from the features of the first projection as they are stored.
        joined: the inverse of `split`.
        value: the function.   slopes: its partial derivatives.
        size: a bound on the summands from which the value and the slopes are computed.
    """

    split: Callable[[Array], tuple[Array, ...]]
    joined: Callable[[tuple[Array, ...]], Array]
    value: Callable[..., Array]
    slopes: Callable[..., tuple[Array, ...]]
    size: Callable[..., Array]

    def value_error(self, u: Array, near: Array, unit: float) -> Array:
        """The error of the value where the argument is off by `near`, with the roundings of one evaluation."""
        args, nears = self.split(u), self.split(near)
        exact = self.value(*args)
        off = [np.abs(self.value(*moved) - exact) for moved in _corners(args, nears)]
        return np.asarray(np.max(off, axis=0) + EVALUATION * unit * self.size(*args))

    def slope_errors(self, u: Array, near: Array, unit: float) -> tuple[Array, ...]:
        """The errors of the slopes, likewise."""
        args, nears = self.split(u), self.split(near)
        exact, moved = self.slopes(*args), [self.slopes(*corner) for corner in _corners(args, nears)]
        rounding = EVALUATION * unit * (1 + self.size(*args))
        return tuple(
            np.max([np.abs(found[i] - slope) for found in moved], axis=0) + rounding for i, slope in enumerate(exact)
        )


def _corners(args: tuple[Array, ...], nears: tuple[Array, ...]) -> list[list[Array]]:
    signs = itertools.product((-1, 0, 1), repeat=len(args))
    return [[a + s * n for a, s, n in zip(args, sign, nears, strict=True)] for sign in signs]


def _sigmoid(t: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-t)))


def _halves(u: Array) -> tuple[Array, ...]:
    return tuple(np.split(u, 2, axis=-1))


def _interleaved(parts: tuple[Array, ...]) -> Array:
    return np.stack(parts, axis=-1).reshape(*parts[0].shape[:-1], len(parts) * parts[0].shape[-1])


def _silu_slopes(gate: Array, up: Array) -> tuple[Array, ...]:
    share = _sigmoid(gate)
    return up * share * (1 + gate * (1 - share)), gate * share


def _clamped(gate: Array, up: Array) -> tuple[Array, Array]:
    return np.minimum(gate, LIMIT), np.clip(up, -LIMIT, LIMIT)


def _clamped_value(gate: Array, up: Array) -> Array:
    gate, up = _clamped(gate, up)
    return np.asarray((up + 1) * gate * _sigmoid(ALPHA * gate))


def _clamped_slopes(gate: Array, up: Array) -> tuple[Array, ...]:
    inside, within = gate <= LIMIT, np.abs(up) <= LIMIT
    gate, up = _clamped(gate, up)
    share = _sigmoid(ALPHA * gate)
    return inside * (up + 1) * share * (1 + ALPHA * gate * (1 - share)), within * gate * share


CURVES = {
    "gated": Curve(
        _halves,
        lambda parts: np.concatenate(parts, axis=-1),
        lambda gate, up: np.asarray(gate * _sigmoid(gate) * up),
        _silu_slopes,
        lambda gate, up: np.asarray((1 + np.abs(gate)) * np.abs(up)),
    ),
    "interleaved": Curve(
        lambda u: (u[..., ::2], u[..., 1::2]),
        _interleaved,
        _clamped_value,
        _clamped_slopes,
        lambda gate, up: np.asarray((1 + np.abs(gate)) * (1 + np.abs(up))),
    ),
    "ungated": Curve(
        lambda u: (u,),
        lambda parts: parts[0],
        lambda t: np.asarray(np.maximum(t, 0) ** 2),
        lambda t: (np.asarray(2 * np.maximum(t, 0)),),
        lambda t: np.asarray(t**2),
    ),
}
