"""Known-bad twins of group `fhe`: what is computed on the integers, and on which shapes and layouts."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import torch

import reference
from reference.hybrid import BackwardModuleLinear
from reference.quantization import Quantized, quantize_dynamic
from tests.baselines.fhe import fhe_breaks
from tests.known_bad.fhe.layer import DOUBLE, Layer, over, rows


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


@fhe_breaks("FHE-DISABLE", says="elements wrong", source="int8 kernels take signed inputs: 255 is read as -1")
class TakesUnsignedBytesForSigned(reference.QuantizedLinear):
    def accumulate(self, x):
        return super().accumulate(x.to(torch.int8).long())


@fhe_breaks("FHE-WIDE", says="elements wrong", dtypes=DOUBLE, source="vpmaddubsw, where a CPU has no VNNI")
class AddsPairsOfProductsInInt16(reference.QuantizedLinear):
    def accumulate(self, x):
        products = torch.nn.functional.pad(x[:, None] * self.weight, (0, self.in_features % 2))
        return products.unflatten(2, (-1, 2)).sum(3).clamp(-(2**15), 2**15 - 1).sum(2)


@fhe_breaks("FHE-DISABLE", says="elements wrong", source="a kernel without a mask on the tail of K")
class ReadsOnIntoTheNextRow(reference.QuantizedLinear):
    def accumulate(self, x):
        tail = -self.in_features % 16
        return super().accumulate(x) + behind(x, tail) @ behind(self.weight, tail).t()


def behind(matrix, columns):
    """The elements that follow each row of a packed matrix in memory; zeros after the last."""
    flat = torch.nn.functional.pad(matrix.flatten(), (0, columns + matrix.shape[1]))
    at = (torch.arange(1, len(matrix) + 1) * matrix.shape[1])[:, None] + torch.arange(columns)
    return flat[at]


@fhe_breaks("FHE-WIDE", says="elements wrong", dtypes=DOUBLE)
class AccumulatesIn24Bits(reference.QuantizedLinear):
    def accumulate(self, x):
        return (super().accumulate(x) + 2**24) % 2**25 - 2**24


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
