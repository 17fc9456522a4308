"""Known-bad twins of quantizers: a quantiser rounds, scales or counts wrongly."""

from __future__ import annotations

import dataclasses

import torch

import reference
from reference.quantization import Quantized
from tests.baselines.fhe import Right, fhe_breaks
from tests.known_bad.fhe.integer_layer import HY4, half_up, over, rows


@fhe_breaks("FHE-QUANT-ROWS", says="quantize_dynamic gave", source=HY4, dtypes=("float32",))
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
