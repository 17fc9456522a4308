"""The integer layer split into steps for twins to override, and wrong rounding functions."""

from __future__ import annotations

import torch

import reference
from reference.quantization import Quantized

HY4 = "zama-ai/concrete-ml HEAD 1c356a957: a range of 0 has the scale 1 (HY4)"
GR2 = "zama-ai/concrete-ml 23cb7dc4d (#765): private_module(x.detach()) (GR2)"


class Layer(reference.QuantizedLinear):
    """The integer layer with a separate step that quantises the weight."""

    def __init__(self, weight, bias, n_bits, input_range=None):
        super().__init__(weight, bias, n_bits, input_range)
        quantized = self.quantize_weight(weight.detach().double(), n_bits)
        if quantized is not None:
            self.weight = quantized.values
            self.weight_sum = quantized.values.sum(1)
            self.weight_scale = quantized.scale[:, 0].expand(self.out_features).clone()
            self.weight_zero_point = quantized.zero_point[:, 0].expand(self.out_features).clone()

    def quantize_weight(self, weight, n_bits):
        return None


def over(t, low, high, n_bits, lowest=0, *, levels=None, rounding=torch.round):
    """Quantise t dynamically from its range; twins change the lowest value, the number of levels or the rounding."""
    levels = 2**n_bits - 1 if levels is None else levels
    scale = torch.where(high > low, (high - low) / levels, torch.ones_like(low))
    zero_point = rounding(lowest - low / scale)
    values = (rounding(t / scale) + zero_point).clamp(lowest, lowest + 2**n_bits - 1)
    return Quantized(values.long(), scale, zero_point.long())


def rows(x):
    """Return x in float64 with the least and the largest element of each row."""
    x = x.double()
    return x, x.amin(1, keepdim=True), x.amax(1, keepdim=True)


def half_up(t):
    """Round to nearest; ties go up."""
    return (t + 0.5).floor()


def half_away(t):
    """Round to nearest; ties go away from zero."""
    return t.sign() * (t.abs() + 0.5).floor()
