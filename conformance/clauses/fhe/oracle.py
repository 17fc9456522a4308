"""The oracle of quantised linear layers: the formulas of the specification in NumPy, in exact integers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import Array, format_of, rounded

Integers = NDArray[Any]  # int64, or Python's integers where int64 might overflow
DOUBLE, SINGLE = format_of(torch.float64).unit, format_of(torch.float32).unit


@dataclass(frozen=True)
class Quantized:
    """Numbers as integers: `x ≈ scale · (values - zero)`.

    Attributes:
        values: [M, K].   scale, zero: [M, 1] or [1, 1].
    """

    values: Integers
    scale: Array
    zero: Integers

    @property
    def real(self) -> Array:
        """The real numbers that the integers represent."""
        return np.asarray(self.scale * (self.values - self.zero))


def by_row(x: Array, n_bits: int) -> Quantized:
    """x quantised per row, unsigned: s = (max - min)/(2ⁿ - 1), z = round(-min/s), q = round(x/s) + z."""
    return _over(x, x.min(1, keepdims=True), x.max(1, keepdims=True), n_bits, 0)


def by_range(x: Array, low: float, high: float, n_bits: int) -> Quantized:
    """x clamped to one range and quantised over it."""
    ends = np.full((1, 1), low), np.full((1, 1), high)
    return _over(np.clip(x, low, high), *ends, n_bits, 0)


def by_column(weight: Array, n_bits: int) -> Quantized:
    """A weight [N, K] quantised per output column, signed: z = round(-2ⁿ⁻¹ - min/s)."""
    return _over(weight, weight.min(1, keepdims=True), weight.max(1, keepdims=True), n_bits, -(2 ** (n_bits - 1)))


def symmetric(weight: Array, n_bits: int) -> Quantized:
    """A weight quantised over one symmetric range: s = max|w|/(2ⁿ⁻¹ - 1), z = 0."""
    scale = np.abs(weight).max(keepdims=True) / (2 ** (n_bits - 1) - 1)
    scale = np.where(scale == 0, 1.0, scale)
    return Quantized(np.rint(weight / scale).astype(np.int64), scale, np.zeros((1, 1), dtype=np.int64))


def _over(x: Array, low: Array, high: Array, n_bits: int, lowest: int) -> Quantized:
    """x over a range. A range of one value c gives exact (s, z, q): c > 0 (c, 0, 1), c < 0 (|c|, 1, 0), 0 (1, 0, 0)."""
    constant = low == high
    scale = np.where(constant, np.where(low == 0, 1.0, np.abs(low)), (high - low) / (2**n_bits - 1))
    zero = np.where(constant, low < 0, np.rint(lowest - low / scale))
    values = np.clip(np.rint(x / scale) + zero, lowest, lowest + 2**n_bits - 1)
    return Quantized(values.astype(np.int64), scale, zero.astype(np.int64))


@dataclass(frozen=True)
class Product:
    """A layer on integers: `y = (raw - [z_w·Σq_x + z_x·Σq_w - z_x·z_w·K])·(s_x·s_w) + b`.

    Attributes:
        x: [M, K].   weight: [N, K].   bias: [N] or None.
    """

    x: Quantized
    weight: Quantized
    bias: Array | None = None

    @cached_property
    def raw(self) -> Integers:
        """The integer product `q_x · q_wᵀ`, which is computed on ciphertexts."""
        return np.asarray(self.x.values @ self.weight.values.T)

    @cached_property
    def corrections(self) -> dict[str, Integers]:
        """The terms that the zero points add to the integer product, by name, in Python's integers."""
        x, weight = self.x, self.weight
        z_x, z_w = x.zero.astype(object), weight.zero.T.astype(object)
        sum_x, sum_w = (q.values.sum(1, keepdims=True).astype(object) for q in (x, weight))
        blank = np.zeros(self.raw.shape, dtype=object)
        return {
            "z_w·Σq_x": blank - z_w * sum_x,
            "z_x·Σq_w": blank - z_x * sum_w.T,
            "z_x·z_w·K": blank + z_x * z_w * x.values.shape[1],
        }

    @property
    def unit(self) -> Array:
        """The value of one unit of the integer product: `s_x·s_w`."""
        return np.broadcast_to(self.x.scale * self.weight.scale.T, self.raw.shape)

    def value(self, raw: Integers | None = None) -> tuple[Array, Array]:
        """The product and the result with bias, in float64, for these raw integers or for the exact ones."""
        total = sum(self.corrections.values(), (self.raw if raw is None else raw).astype(object))
        product = np.asarray(total, dtype=np.float64) * self.unit
        return product, product if self.bias is None else product + self.bias

    def expected(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], *, each_term: bool = False) -> Expected:
        """The expected output of the layer.

        Equality is required where, in every valid order of the last operations, only the cast to the dtype rounds.

        Args:
            each_term: list each of the three corrections as a term of its own.
        """
        product, value = self.value()
        corrections = {key: part.astype(np.float64) * self.unit for key, part in self.corrections.items()}
        terms = {"product": product} | (corrections if each_term else {})
        if self.bias is not None:
            terms["bias"] = np.broadcast_to(self.bias, product.shape)
        exact = self._exact(product, value)
        single = rounded(value, torch.float32)  # a cast to 16 bits may go through float32
        exact &= (dtype not in (torch.bfloat16, torch.float16)) | (single == value)
        absolute = sum((np.abs(part) for part in corrections.values()), np.abs(self.raw * self.unit))
        allowed = DOUBLE * (4 * np.abs(product) + 2 * np.abs(value))
        allowed = allowed + np.where(absolute / self.unit < 2**53, 0, 8 * DOUBLE * absolute)
        if dtype != torch.float64:
            casts = format_of(dtype).unit + (0 if dtype == torch.float32 else SINGLE)
            allowed = allowed + casts * np.abs(value) + format_of(dtype).step
        result = np.where(exact, rounded(value, dtype), value)
        return Expected(
            name,
            result.reshape(shape),
            None if exact.all() else np.where(exact, 0, allowed).reshape(shape),
            dtype,
            {key: part.reshape(shape) for key, part in terms.items()} if len(terms) > 1 else {},
        )

    def _exact(self, product: Array, value: Array) -> NDArray[np.bool_]:
        """The elements whose product and sum with the bias do not round in float64."""
        bits = _bits(self.x.scale) + _bits(self.weight.scale.T)
        room = 53 - np.broadcast_to(bits, product.shape)
        small = np.abs(product) < self.unit * 2.0 ** np.maximum(room, 0)
        bias = value - product
        summed = np.ones_like(small) if self.bias is None else (bias == self.bias) & (value - self.bias == product)
        return np.asarray(small & (room > 0) & summed)

    @property
    def bound(self) -> Array:
        """The bound on the difference from the float layer: s/2 for each operand, and rounding in float64."""
        x, weight = self.x, self.weight
        half_x, half_w = x.scale / 2, weight.scale / 2
        features = self.x.values.shape[1]
        absolute_x, absolute_w = np.abs(x.real), np.abs(weight.real)
        bound = absolute_x.sum(1, keepdims=True) * half_w.T + half_x * absolute_w.sum(1, keepdims=True).T
        bound = bound + features * half_x * half_w.T
        return np.asarray(bound * (1 + 1e-9) + 1e-12 * (absolute_x @ absolute_w.T))

    @property
    def sums(self) -> int:
        """`max_j max(Σ_k q_w⁺, Σ_k |q_w⁻|)`; times 2ⁿ - 1 this is the largest possible magnitude of `raw`."""
        q = self.weight.values
        return int(max(np.maximum(q, 0).sum(1).max(initial=0), np.maximum(-q, 0).sum(1).max(initial=0)))


def noise_std(parameters: Any, weight: Integers) -> Array:
    """The standard deviation of each output column's noise, in units of the integer product.

    `σ² = (ρ·2^(b-m_out))² + (ρ·2^(b-L·B))² + N·(2.845e-15·2^b·√(L·P·4^B/12))² + (2^(b-m_in)/√12·‖w_col‖₂)²` with
    `ρ² = (1 + P/2)/12` for polynomials of P coefficients, and N ≤ P columns.
    """
    p = parameters
    rho = math.sqrt((1 + p.polynomial_size / 2) / 12)
    outputs, digits = rho * 2.0 ** (p.bits - p.bits_out), rho * 2.0 ** (p.bits - p.levels * p.base_log)
    packing = 2.84526747960191e-15 * 2.0**p.bits * math.sqrt(p.levels * p.polynomial_size * 4.0**p.base_log / 12)
    inputs = 2.0 ** (p.bits - p.bits_in) / math.sqrt(12) * np.linalg.norm(weight.astype(np.float64), axis=1)
    return np.asarray(np.sqrt(outputs**2 + digits**2 + len(weight) * packing**2 + inputs**2))


def _bits(scale: Array) -> NDArray[np.int64]:
    """The number of significant bits of each number; 1 for a power of two."""
    mantissa = np.frexp(scale)[0]
    integers = (mantissa * 2.0**53).astype(np.int64)
    trailing = np.array([(int(i) & -int(i)).bit_length() - 1 for i in integers.flat]).reshape(integers.shape)
    return np.asarray(53 - trailing)
