"""Known-bad twins of group `fhe`: how numbers become integers, row by row and column by column."""

from __future__ import annotations

import dataclasses

import torch

import reference
from reference.quantization import Quantized
from tests.baselines.fhe import Right, fhe_breaks
from tests.known_bad.fhe.layer import DOUBLE, HY4, Layer, half_away, half_up, over, rows


@fhe_breaks("FHE-CONSTANT", says="elements wrong", source=HY4)
class RoundsConstantRows(reference.QuantizedLinear):
    def quantize(self, x):
        if self.input_range is not None or not x.numel():
            return super().quantize(x)
        return over(*rows(x), self.n_bits)


@fhe_breaks("FHE-CONSTANT", says="elements wrong", source=HY4)
class RoundsConstantColumns(Layer):
    def quantize_weight(self, weight, n_bits):
        if self.input_range is not None or not weight.numel():
            return None
        return over(*rows(weight), n_bits, -(2 ** (n_bits - 1)))


@fhe_breaks("FHE-CONSTANT", says="elements wrong")
class TakesConstantRowsForPositive(reference.QuantizedLinear):
    def quantize(self, x):
        quantized = super().quantize(x)
        if self.input_range is not None or not x.numel():
            return quantized
        negative = (x == x[:, :1]).all(1, keepdim=True) & (x[:, :1] < 0)
        values = torch.where(negative, torch.ones_like(quantized.values), quantized.values)
        zero_point = torch.where(negative, torch.zeros_like(quantized.zero_point), quantized.zero_point)
        return Quantized(values, quantized.scale, zero_point)


@fhe_breaks("FHE-MEAN", says="zeros", source=HY4, dtypes=("float32",))
class RoundsTheGradientOfAMean(RoundsConstantRows):
    pass


class RoundsInputsBy(reference.QuantizedLinear):
    """Dynamic inputs with another rounding."""

    rounding = staticmethod(torch.round)

    def quantize(self, x):
        quantized = super().quantize(x)
        if self.input_range is not None or not x.numel():
            return quantized
        varies = (x != x[:, :1]).any(1, keepdim=True)
        other = over(*rows(x), self.n_bits, rounding=self.rounding)
        return Quantized(
            torch.where(varies, other.values, quantized.values),
            quantized.scale,
            torch.where(varies, other.zero_point, quantized.zero_point),
        )


@fhe_breaks("FHE-ROUND", says="elements wrong", dtypes=("float32",))
class RoundsHalfUp(RoundsInputsBy):
    rounding = staticmethod(half_up)


@fhe_breaks("FHE-ROUND", says="elements wrong", dtypes=("float32",))
class RoundsHalfAway(RoundsInputsBy):
    rounding = staticmethod(half_away)


@fhe_breaks("FHE-ROUND", says="elements wrong", dtypes=("float32",))
class RoundsWeightsHalfUp(Layer):
    def quantize_weight(self, weight, n_bits):
        if self.input_range is not None or not weight.numel() or (weight == weight[:, :1]).all(1).any():
            return None
        return over(*rows(weight), n_bits, -(2 ** (n_bits - 1)), rounding=half_up)


@fhe_breaks("FHE-ROUND", says="elements wrong", dtypes=("float32",))
class TruncatesTheZeroPoint(reference.QuantizedLinear):
    def quantize(self, x):
        quantized = super().quantize(x)
        if self.input_range is not None or not x.numel():
            return quantized
        values, low, high = rows(x)
        zero_point = torch.where(high > low, (-low / quantized.scale).trunc().long(), quantized.zero_point)
        q = (values / quantized.scale).round().long() + zero_point
        return Quantized(q.clamp(0, 2**self.n_bits - 1), quantized.scale, zero_point)


@fhe_breaks("FHE-ROUND", says="elements wrong", dtypes=DOUBLE)
class TruncatesInputs(RoundsInputsBy):
    rounding = staticmethod(torch.floor)


@fhe_breaks("FHE-QUANT-ROWS", says="quantize_dynamic gave values", source=HY4, dtypes=("float32",))
class QuantizesConstantRowsWithScale1(Right):
    def quantize_dynamic(self, x, n_bits):
        return over(*rows(x), n_bits)


@fhe_breaks("FHE-QUANT-ROWS", says="quantize_dynamic gave", dtypes=("float32",))
class QuantizesRowsHalfUp(Right):
    def quantize_dynamic(self, x, n_bits):
        right, other = reference.quantize_dynamic(x, n_bits), over(*rows(x), n_bits, rounding=half_up)
        varies = (x != x[:, :1]).any(1, keepdim=True)
        zero_point = torch.where(varies, other.zero_point, right.zero_point)
        return Quantized(torch.where(varies, other.values, right.values), right.scale, zero_point)


@fhe_breaks("FHE-QUANT-COLUMNS", says="quantize_weight_columns gave", dtypes=("float32",))
class QuantizesInputFeaturesOfTheWeight(Right):
    def quantize_weight_columns(self, weight, n_bits):
        quantized = reference.quantize_weight_columns(weight.t(), n_bits)
        return Quantized(quantized.values.t(), quantized.scale[:1], quantized.zero_point[:1])


@fhe_breaks("FHE-QUANT-RANGE", says="counted 0 clamped elements", dtypes=("float32",))
class CountsNothing(Right):
    def quantize_static(self, x, low, high, n_bits):
        return reference.quantize_static(x, low, high, n_bits)[0], 0


@fhe_breaks("FHE-QUANT-RANGE", says="quantize_static gave values", dtypes=("float32",))
class QuantizesBeyondTheRange(Right):
    def quantize_static(self, x, low, high, n_bits):
        right, clamped = reference.quantize_static(x, low, high, n_bits)
        values = (x.double() / right.scale).round().long() + right.zero_point
        return dataclasses.replace(right, values=values), clamped


@fhe_breaks("FHE-QUANT-WEIGHT", says="quantize_weight gave values", dtypes=("float32",))
class DividesBy128(Right):
    def quantize_weight(self, weight, n_bits):
        scale = weight.double().abs().amax().reshape(1, 1) / 2 ** (n_bits - 1)
        values = (weight / scale).round().clamp(max=2 ** (n_bits - 1) - 1).long()
        return Quantized(values, scale, torch.zeros(1, 1, dtype=torch.int64))
