"""Known-bad twins of magnitudes: quantisation fails on very small or large numbers, or on more than 8 bits."""

from __future__ import annotations

import torch

import reference
from reference.quantization import Quantized
from tests.baselines.fhe import fhe_breaks
from tests.known_bad.fhe.integer_layer import rows

BOTH = ("float64", "float32")


class HasALeastScale(reference.QuantizedLinear):
    """The integer layer with a lower bound `least` on its scales."""

    least = 1e-8

    def quantize(self, x):
        quantized = super().quantize(x)
        if self.input_range is not None or not x.numel():
            return quantized
        values, low, high = rows(x)
        small = (quantized.scale < self.least) & (low != high)
        scale = quantized.scale.clamp(min=self.least)
        zero_point = (-low / scale).round().long()
        q = ((values / scale).round() + zero_point).clamp(0, 2**self.n_bits - 1).long()
        return Quantized(
            torch.where(small, q, quantized.values),
            torch.where(small, scale, quantized.scale),
            torch.where(small, zero_point, quantized.zero_point),
        )


@fhe_breaks("FHE-MAGNITUDE", says="error ÷ budget", dtypes=BOTH, source="torch.ao.quantization: eps of observers")
class HasTheEpsilonOfFloat32(HasALeastScale):
    least = float(torch.finfo(torch.float32).eps)


@fhe_breaks("FHE-MAGNITUDE", says="error ÷ budget", dtypes=BOTH)
class HasATinyEpsilon(HasALeastScale):
    least = 1e-12


@fhe_breaks("FHE-MAGNITUDE", says="error ÷ budget", dtypes=BOTH)
class TakesNarrowRowsForConstant(reference.QuantizedLinear):
    def quantize(self, x):
        if self.input_range is not None or not x.numel():
            return super().quantize(x)
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        narrow = (high - low) <= 1e-4 * torch.maximum(low.abs(), high.abs())
        return super().quantize(torch.where(narrow, low, x))


@fhe_breaks("FHE-MAGNITUDE", says="error ÷ budget", dtypes=BOTH)
class CutsLargeInputs(reference.QuantizedLinear):
    def quantize(self, x):
        return super().quantize(x.clamp(-65504, 65504))


@fhe_breaks("FHE-MORE-BITS", says="error ÷ budget", dtypes=BOTH)
class KeepsInputsInBytes(reference.QuantizedLinear):
    def accumulate(self, x):
        return super().accumulate(x.to(torch.uint8).long())


@fhe_breaks("FHE-MORE-BITS", says="error ÷ budget", dtypes=BOTH)
class KeepsWeightsInBytes(reference.QuantizedLinear):
    def accumulate(self, x):
        return x @ self.weight.to(torch.int8).long().t()
