"""Known-bad twins of rounding: the integer layer rounds its inputs, or corrects zero points, wrongly."""

from __future__ import annotations

import dataclasses

import torch

import reference
from reference.quantization import Quantized
from tests.baselines.fhe import fhe_breaks
from tests.known_bad.fhe.integer_layer import HY4, Layer, half_away, half_up, over, rows
from tests.known_bad.fhe.mode_disable import DOUBLE


class CorrectsWithout(reference.QuantizedLinear):
    """The zero-point correction without the term of index `missing`."""

    missing = 0

    def recover(self, raw, x):
        terms = [
            self.weight_zero_point * x.values.sum(1, keepdim=True),
            x.zero_point * self.weight_sum,
            -x.zero_point * self.weight_zero_point * self.in_features,
        ]
        return super().recover(raw + terms[self.missing], x)


@fhe_breaks("FHE-ZERO-POINT", says="elements wrong", dtypes=("float32",))
class ForgetsTheSumOfInputs(CorrectsWithout):
    missing = 0


@fhe_breaks("FHE-ZERO-POINT", says="elements wrong", dtypes=("float32",))
class ForgetsTheSumOfWeights(CorrectsWithout):
    missing = 1


@fhe_breaks("FHE-ZERO-POINT", says="elements wrong", dtypes=("float32",))
class ForgetsTheProductOfZeroPoints(CorrectsWithout):
    missing = 2


@fhe_breaks("FHE-ZERO-POINT", says="elements wrong", dtypes=("float32",))
class KeepsTheZeroPointInRange(reference.QuantizedLinear):
    def quantize(self, x):
        quantized = super().quantize(x)
        return dataclasses.replace(quantized, zero_point=quantized.zero_point.clamp(0, 2**self.n_bits - 1))


@fhe_breaks("FHE-ZERO-POINT", says="error ÷ budget", dtypes=DOUBLE)
class CorrectsInFloat32(reference.QuantizedLinear):
    def recover(self, raw, x):
        real = (x.values - x.zero_point).float() * x.scale.float()
        weight = (self.weight - self.weight_zero_point[:, None]).float() * self.weight_scale[:, None].float()
        y = (real @ weight.t()).double()
        return y if self.bias is None else y + self.bias


@fhe_breaks("FHE-ROUND", says="elements wrong", dtypes=DOUBLE)
class MultipliesByTheReciprocal(reference.QuantizedLinear):
    def quantize(self, x):
        quantized = super().quantize(x)
        q = (x.double() * (1 / quantized.scale)).round() + quantized.zero_point
        values = q.clamp(0, 2**self.n_bits - 1).long()
        return Quantized(values, quantized.scale, quantized.zero_point) if x.numel() else quantized


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
    """Dynamic quantisation of inputs with another rounding function."""

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
