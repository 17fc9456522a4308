"""Known-bad twins of static quantization: calibration records a wrong range, or the layer ignores it."""

from __future__ import annotations

import torch

import reference
from reference.quantization import Quantized
from tests.baselines.fhe import fhe_breaks
from tests.known_bad.fhe.integer_layer import HY4, Layer, over


class SharesARange(reference.RemoteModule):
    """Calibration that uses one range for all modules of a model."""

    def _observe(self, x):
        super()._observe(x)
        self.split.shared_range = (
            min(getattr(self.split, "shared_range", self.input_range)[0], self.input_range[0]),
            max(getattr(self.split, "shared_range", self.input_range)[1], self.input_range[1]),
        )

    def compiled(self, n_bits, dynamic):
        if not dynamic and self.input_range is not None:
            self.input_range = self.split.shared_range
        return super().compiled(n_bits, dynamic)


@fhe_breaks("FHE-STATIC", says="error ÷ budget", dtypes=("float32",))
class SharesTheRangeOfForwardAndBackward(SharesARange):
    pass


@fhe_breaks("FHE-STATIC", says="elements wrong", dtypes=("float32",))
class UsesAllOfTheSignedRange(Layer):
    def quantize_weight(self, weight, n_bits):
        if self.input_range is None:
            return None
        scale = weight.abs().amax().reshape(1, 1) / 2 ** (n_bits - 1)
        values = (weight / scale).round().clamp(max=2 ** (n_bits - 1) - 1)
        return Quantized(values.long(), scale, torch.zeros(1, 1, dtype=torch.int64))


@fhe_breaks("FHE-STATIC", says="elements wrong", dtypes=("float32",))
class StaysDynamic(reference.RemoteModule):
    def compiled(self, n_bits, dynamic):
        super().compiled(n_bits, dynamic)
        return super().compiled(n_bits, True)


@fhe_breaks("FHE-STATIC-MERGE", says="elements wrong", dtypes=("float32",))
class KeepsTheLastRange(reference.RemoteModule):
    def _observe(self, x):
        self.input_range = None
        super()._observe(x)


@fhe_breaks("FHE-STATIC-MERGE", says="elements wrong", dtypes=("float32",))
class KeepsTheFirstRange(reference.RemoteModule):
    def _observe(self, x):
        if self.input_range is None:
            super()._observe(x)


@fhe_breaks("FHE-STATIC-CLAMP", says="were clamped without a warning", dtypes=("float32",))
class ClampsSilently(reference.QuantizedLinear):
    def quantize(self, x):
        quantized = super().quantize(x)
        self.clamped = 0
        return quantized


@fhe_breaks("FHE-STATIC-CLAMP", says="elements wrong", dtypes=("float32",))
class WidensTheRange(reference.QuantizedLinear):
    def quantize(self, x):
        clamped = super().quantize(x)
        if self.input_range is None:
            return clamped
        low, high = (torch.full((1, 1), end, dtype=torch.float64) for end in self.input_range)
        x = x.double()
        return over(x, torch.minimum(low, x.min()), torch.maximum(high, x.max()), self.n_bits)


@fhe_breaks("FHE-STATIC-CLAMP", says="does not say that", dtypes=("float32",))
class CountsRowsWithClampedInputs(reference.QuantizedLinear):
    def quantize(self, x):
        before = self.clamped
        quantized = super().quantize(x)
        if self.clamped > before:
            low, high = self.input_range
            self.clamped = before + int(((x < low) | (x > high)).any(1).sum()) + 1000
        return quantized


@fhe_breaks("FHE-STATIC-CONSTANT", says="elements wrong", source=HY4, dtypes=("float32",))
class RoundsAConstantRange(reference.QuantizedLinear):
    def quantize(self, x):
        quantized = super().quantize(x)
        if self.input_range is None:
            return quantized
        low, high = (torch.full((1, 1), end, dtype=torch.float64) for end in self.input_range)
        return quantized if low < high else over(x.double(), low, high, self.n_bits)
