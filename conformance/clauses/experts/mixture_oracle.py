"""The expected output and gradients of a module of experts, in float64, each with its budget.

Each row is a slot: a token, an expert, a weight p. Its two projections are linear layers with their budgets, `RowChain`
and `weight_chain`; an error of the first reaches later results through the gate (`gate_curves`) and through the merged
matrices, by magnitudes: ``|merged| · error``. Errors of the sum over slots are added too.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from conformance.clauses.experts.gate_curves import CURVES
from conformance.clauses.experts.mixture import Mixture
from conformance.judgement.linear_oracle import Expected
from conformance.numerics import budget
from conformance.numerics.budget import RowChain
from conformance.numerics.formats import Array

Bounded = tuple[Array, Array]  # values and the bounds of their errors


class MixtureOracle:
    """Expected results of a module of experts; `dropped` projections are computed without their adapters."""

    def __init__(self, mixture: Mixture, dropped: tuple[str, ...] = ()) -> None:
        self.mixture, self.how, self.case = mixture, mixture.rounding, mixture.case
        self.dropped = (*dropped, *(name for name in mixture.names if name not in mixture.adapted))
        self.curve, (self.first, self.down) = CURVES[self.case.kind], mixture.names
        self.token, self.slot = np.nonzero(mixture.present)
        self.expert = mixture.index[self.token, self.slot]
        self.p = mixture.values["p"][self.token, self.slot][:, None]
        self.x, self.g = mixture.values["x"][self.token], mixture.values["g"][self.token]

    def _scale(self, name: str) -> float:
        return 0.0 if name in self.dropped else self.case.scale

    def _chain(self, name: str, rows: Bounded, *, back: bool = False) -> Bounded:
        """A projection of the rows, or the gradient of its input, with the errors that the rows already have."""
        values, scale = self.mixture.values, self._scale(name)
        weight, down, up = (values[f"{name}.{part}"] for part in ("weight", "lora_A", "lora_B"))
        bias = values.get(f"{name}.bias")
        width = weight.shape[2] if back else weight.shape[1]
        found, limits = np.zeros((len(rows[0]), width)), np.zeros((len(rows[0]), width))
        for e in np.unique(self.expert):
            own = self.expert == e
            merged = np.abs(weight[e] + scale * up[e] @ down[e])
            if back:
                chain = RowChain(rows[0][own], weight[e].T, None, up[e].T, down[e].T, scale, self.how)
                carried = rows[1][own] @ merged
            else:
                own_bias = None if bias is None else bias[e]
                chain = RowChain(rows[0][own], weight[e], own_bias, down[e], up[e], scale, self.how)
                carried = rows[1][own] @ merged.T
                found[own] += 0.0 if own_bias is None else own_bias
            found[own] += chain.update + (0.0 if chain.product is None else chain.product)
            limits[own] = chain.budget + carried
        return found, limits

    @cached_property
    def u(self) -> Bounded:
        """The first projection of each row."""
        return self._chain(self.first, (self.x, np.zeros_like(self.x)))

    @cached_property
    def h(self) -> Bounded:
        """The gate's output; with one more store, of p·h, which a plan may put before the second projection."""
        u, near = self.u
        value = self.curve.value(*self.curve.split(u))
        return value, self.curve.value_error(u, near, self.how.unit) + 2 * self.how.unit * np.abs(value)

    @cached_property
    def f(self) -> Bounded:
        """The second projection of each row: what its expert gives."""
        return self._chain(self.down, self.h)

    @cached_property
    def d_f(self) -> Bounded:
        """`p·g`."""
        value = self.p * self.g
        return value, 2 * self.how.unit * np.abs(value)

    @cached_property
    def d_h(self) -> Bounded:
        """The gradient of the gate's output."""
        return self._chain(self.down, self.d_f, back=True)

    @cached_property
    def d_u(self) -> Bounded:
        """The gradient of the first projection's output."""
        (u, near), (d_h, near_d) = self.u, self.d_h
        slopes, errors = self.curve.slopes(*self.curve.split(u)), self.curve.slope_errors(u, near, self.how.unit)
        value = tuple(slope * d_h for slope in slopes)
        limits = tuple(
            np.abs(slope) * near_d + error * (np.abs(d_h) + near_d) + 3 * self.how.unit * np.abs(slope * d_h)
            for slope, error in zip(slopes, errors, strict=True)
        )
        return self.curve.joined(value), self.curve.joined(limits)

    def _summed(self, rows: Bounded) -> Bounded:
        """The sum over a token's slots: each summand may be stored, and so is the sum."""
        value = np.zeros((self.case.m, rows[0].shape[1]))
        size, limits = np.zeros_like(value), np.zeros_like(value)
        np.add.at(value, self.token, rows[0])
        np.add.at(size, self.token, np.abs(rows[0]))
        np.add.at(limits, self.token, rows[1])
        stores = 3 * self.how.unit + self.how.accumulation(self.case.slots)
        return value, limits + stores * size + 4 * self.how.step * (size > 0)

    @cached_property
    def y(self) -> Expected:
        """`Σ_j p_tj · f_e(x_t)`."""
        f, near = self.f
        return self._expected("y", self._summed((self.p * f, self.p * near)), lacking="y")

    @cached_property
    def dX(self) -> Expected:
        """The gradient of the tokens, summed over their slots."""
        return self._expected("dX", self._summed(self._chain(self.first, self.d_u, back=True)), lacking="dX")

    @cached_property
    def dp(self) -> Expected:
        """`g_t · f_e(x_t)`; 0 for an absent slot."""
        f, near = self.f
        (h, near_h), size = self.h, np.abs(self.g)
        # a plan with p before the second projection sums (g W) h instead, and g·b
        other, near_other = self._chain(self.down, (self.g, np.zeros_like(self.g)), back=True)
        limits = (size * near).sum(1) + (np.abs(h) * near_other + np.abs(other) * near_h).sum(1)
        widths = self.how.accumulation(max(self.case.k, self.case.n)) + 3 * self.how.unit
        limits += widths * ((size * np.abs(f)).sum(1) + (np.abs(other * h)).sum(1))
        value, whole = np.zeros(self.mixture.index.shape), np.zeros(self.mixture.index.shape)
        value[self.token, self.slot] = (self.g * f).sum(1)
        whole[self.token, self.slot] = limits
        return self._expected("dp", (value, whole), lacking="dp")

    def _weights(self, name: str, side: str) -> Expected:
        """dA or dB of one projection over the rows of each expert."""
        (rows, near), (g, near_g) = (
            ((self.x, np.zeros_like(self.x)), self.d_u) if name == self.first else (self.h, self.d_f)
        )
        scale, values = self.case.scale, self.mixture.values
        A, B = values[f"{name}.lora_A"], values[f"{name}.lora_B"]
        value, limits = np.zeros_like(A if side == "lora_A" else B), np.zeros_like(A if side == "lora_A" else B)
        for e in np.unique(self.expert):
            own = self.expert == e
            x, gs, off, off_g = rows[own], g[own], near[own], near_g[own]
            if side == "lora_A":
                T, size = gs @ B[e], np.abs(gs) @ np.abs(B[e])
                value[e] = scale * T.T @ x
                limits[e] = budget.weight_chain(gs, B[e], x, scale, self.how)
                limits[e] += scale * ((off_g @ np.abs(B[e])).T @ (np.abs(x) + off) + size.T @ off)
            else:
                S, size = x @ A[e].T, np.abs(x) @ np.abs(A[e]).T
                value[e] = scale * gs.T @ S
                limits[e] = budget.weight_chain(x, A[e].T, gs, scale, self.how).T
                carried = off @ np.abs(A[e]).T
                limits[e] += scale * (off_g.T @ (size + carried) + np.abs(gs).T @ carried)
        symbol = f"{'dA' if side == 'lora_A' else 'dB'} of {name}"
        found = self._expected(symbol, (value, limits))
        return Expected(found.name, value, limits, self.mixture.adapter_dtype, {}, certified=found.certified)

    def _expected(self, name: str, bounded: Bounded, lacking: str = "") -> Expected:
        value, limits = bounded
        terms: dict[str, Array] = {}
        if lacking and not self.dropped:
            for missing in self.mixture.adapted:
                part = value - getattr(MixtureOracle(self.mixture, (missing,)), lacking).value
                terms |= {f"{missing} adapter": part} if part.any() else {}
        return Expected(name, value, limits, self.mixture.dtype, terms, certified=bool(value.any()))

    def gradient(self, operand: str) -> Expected:
        """The expected gradient of `x`, `p`, or an operand such as `down_proj.lora_A`."""
        if operand in ("x", "p"):
            return self.dX if operand == "x" else self.dp
        name, _, side = operand.partition(".")
        return self._weights(name, side)
