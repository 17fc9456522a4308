"""Known-bad twins of group `fhe`: how numbers become integers, and what is computed on them."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import torch

import reference
from reference.hybrid import BackwardModuleLinear
from reference.quantization import Quantized, quantize_dynamic
from tests.known_bad import fhe_calls, fhe_modes  # noqa: F401  (the group's other twins)
from tests.right_fhe import Right, fhe_breaks

DOUBLE = ("float64",)


class Layer(reference.QuantizedLinear):
    """The integer layer, with its weight's quantisation as a step of its own."""

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
    """The formula of dynamic quantisation, with what twins change about it."""
    levels = 2**n_bits - 1 if levels is None else levels
    scale = torch.where(high > low, (high - low) / levels, torch.ones_like(low))
    zero_point = rounding(lowest - low / scale)
    values = (rounding(t / scale) + zero_point).clamp(lowest, lowest + 2**n_bits - 1)
    return Quantized(values.long(), scale, zero_point.long())


def rows(x):
    """Least and largest of each row."""
    x = x.double()
    return x, x.amin(1, keepdim=True), x.amax(1, keepdim=True)


@fhe_breaks("FHE-DISABLE", says="as if the bias term were added twice")
class AddsTheBiasTwice(reference.QuantizedLinear):
    def recover(self, raw, x):
        y = super().recover(raw, x)
        return y if self.bias is None else y + self.bias


@fhe_breaks("FHE-DISABLE", says="as if the bias term were missing")
class ForgetsTheBias(reference.QuantizedLinear):
    def __init__(self, weight, bias, n_bits, input_range=None):
        super().__init__(weight, None, n_bits, input_range)


@fhe_breaks("FHE-DISABLE", says="elements wrong", source="a fixed range of inputs for all rows of a batch")
class QuantizesTheWholeBatch(reference.QuantizedLinear):
    def quantize(self, x):
        if self.input_range is not None or not x.numel():
            return super().quantize(x)
        quantized = quantize_dynamic(x.reshape(1, -1), self.n_bits)
        blank = torch.zeros(len(x), 1, dtype=torch.int64)
        return Quantized(quantized.values.reshape(x.shape), quantized.scale + blank, quantized.zero_point + blank)


@fhe_breaks("FHE-DISABLE", says="elements wrong")
class QuantizesTheWeightAsOne(Layer):
    def quantize_weight(self, weight, n_bits):
        if self.input_range is not None or not weight.numel():
            return None
        lowest = -(2 ** (n_bits - 1))
        return over(weight, weight.amin().reshape(1, 1), weight.amax().reshape(1, 1), n_bits, lowest)


@fhe_breaks("FHE-DISABLE", says="elements wrong")
class IsOffByOneUnit(reference.QuantizedLinear):
    def accumulate(self, x):
        raw = super().accumulate(x)
        raw[:, -1] += 1
        return raw


@fhe_breaks("FHE-DISABLE", says="error ÷ budget", dtypes=DOUBLE)
class RecoversInFloat32(reference.QuantizedLinear):
    def recover(self, raw, x):
        return super().recover(raw, x).float().double()


@fhe_breaks("FHE-DISABLE", says="elements wrong")
class MultipliesByTheMeanScale(reference.QuantizedLinear):
    def recover(self, raw, x):
        if not x.values.numel():
            return super().recover(raw, x)
        return super().recover(raw, dataclasses.replace(x, scale=x.scale.mean().expand_as(x.scale)))


@fhe_breaks("FHE-DISABLE-DX", says="elements wrong")
class QuantizesGradientsByTheForwardRange(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        if isinstance(self.private_module, BackwardModuleLinear):
            return super()._in_integers(x.clamp(*self.split.seen), quantized, mode)
        self.split.seen = (float(x.min()), float(x.max())) if x.numel() else (-1.0, 1.0)
        return super()._in_integers(x, quantized, mode)


@fhe_breaks("FHE-DISABLE-DX", says="elements wrong")
class AddsABiasToTheGradient(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        return y + 0.125 if isinstance(self.private_module, BackwardModuleLinear) else y


@fhe_breaks("FHE-DISABLE-DX", says="zeros", source="zama-ai/concrete-ml 23cb7dc4d (#765): x.detach() (GR2)")
class LosesTheGradientOfTheProduct(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        return y * 0 if isinstance(self.private_module, BackwardModuleLinear) else y


@fhe_breaks("FHE-LEAD", says="raised")
class StumblesOverEmptyBatches(reference.QuantizedLinear):
    def quantize(self, x):
        _ = x.abs().max()
        return super().quantize(x)


@fhe_breaks("FHE-LEAD", says="has shape")
class FlattensTheBatch(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        return super()._in_integers(x.reshape(-1, self.in_features), quantized, mode)


@fhe_breaks("FHE-LAYOUT", says="raised RuntimeError", source="NVIDIA/apex #1601 (ST1)")
class FlattensByView(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        return super()._in_integers(x.view(-1, self.in_features).view(x.shape), quantized, mode)


@fhe_breaks("FHE-LAYOUT", says="NaN or infinite", source="Dao-AILab/flash-attention #355 (ST3)")
class ReadsAsIfPacked(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        stride = [1]
        for size in reversed(x.shape[1:]):
            stride.insert(0, stride[0] * size)
        room = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
        packed = x.as_strided(x.shape, stride) if room >= x.numel() and x.ndim else x
        return super()._in_integers(packed, quantized, mode)


@fhe_breaks("FHE-CONV1D", says="raised", dtypes=("float32",))
class TakesAConv1DForALinear(reference.RemoteModule):
    def __init__(self, private_module, module_name, split):
        super().__init__(private_module, module_name, split)
        if type(private_module).__name__ == "Conv1D":
            self.out_features, self.in_features = private_module.weight.shape


HY4 = "zama-ai/concrete-ml HEAD 1c356a957: a range of 0 has the scale 1 (HY4)"


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


def half_up(t):
    """Round half-way cases up."""
    return (t + 0.5).floor()


def half_away(t):
    """Round half-way cases away from zero."""
    return t.sign() * (t.abs() + 0.5).floor()


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


class CorrectsWithout(reference.QuantizedLinear):
    """The zero point correction without one of its terms."""

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


@fhe_breaks("FHE-WIDE", says="elements wrong", dtypes=DOUBLE)
class MultipliesInFloat32(reference.QuantizedLinear):
    def accumulate(self, x):
        return (x.float() @ self.weight.float().t()).long()


@fhe_breaks("FHE-WIDE", says="elements wrong", dtypes=DOUBLE)
class AccumulatesIn24Bits(reference.QuantizedLinear):
    def accumulate(self, x):
        return (super().accumulate(x) + 2**24) % 2**25 - 2**24


@fhe_breaks("FHE-ROUND", says="elements wrong", dtypes=DOUBLE)
class TruncatesInputs(RoundsInputsBy):
    rounding = staticmethod(torch.floor)


@fhe_breaks("FHE-BOUND", says="error ÷ budget", dtypes=DOUBLE)
class SparesABit(Layer):
    def __init__(self, weight, bias, n_bits, input_range=None):
        super().__init__(weight, bias, n_bits - 1 if n_bits > 2 else n_bits, input_range)


@fhe_breaks("FHE-BITS", says="elements wrong", dtypes=DOUBLE)
class HasOneStepTooMany(reference.QuantizedLinear):
    def quantize(self, x):
        if self.input_range is not None or not x.numel() or x.shape[1] == 1:
            return super().quantize(x)
        return over(*rows(x), self.n_bits, levels=2**self.n_bits)


@fhe_breaks("FHE-AMP", says="has dtype torch.float32", dtypes=("float32",))
class IgnoresAutocast(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        with torch.autocast("cpu", enabled=False) if x.device.type == "cpu" else nullcontext():
            return super()._in_integers(x, quantized, mode)


class SharesARange(reference.RemoteModule):
    """Calibration with something else than the range of all inputs of this module."""

    def _observe(self, x):
        super()._observe(x)
        self.split.shared = (
            min(getattr(self.split, "shared", self.input_range)[0], self.input_range[0]),
            max(getattr(self.split, "shared", self.input_range)[1], self.input_range[1]),
        )

    def compiled(self, n_bits, dynamic):
        if not dynamic and self.input_range is not None:
            self.input_range = self.split.shared
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
