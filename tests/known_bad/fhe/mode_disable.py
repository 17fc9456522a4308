"""Known-bad twins of mode disable: the integer layer quantises, multiplies or recovers its result wrongly."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import torch

import reference
from reference import HybridFHEMode as Mode
from reference.hybrid import BackwardModuleLinear
from reference.quantization import Quantized, quantize_dynamic
from tests.baselines.fhe import fhe_breaks
from tests.known_bad.fhe.integer_layer import GR2, Layer, over, rows

DOUBLE = ("float64",)
SINGLE = ("float32",)


@fhe_breaks("FHE-DISABLE", says="worst    y")
class AddsTheBiasTwice(reference.QuantizedLinear):
    def recover(self, raw, x):
        y = super().recover(raw, x)
        return y if self.bias is None else y + self.bias


@fhe_breaks("FHE-DISABLE", says="worst    y")
class ForgetsTheBias(reference.QuantizedLinear):
    def __init__(self, weight, bias, n_bits, input_range=None):
        super().__init__(weight, None, n_bits, input_range)


@fhe_breaks("FHE-DISABLE", says="elements wrong", source="one input range for all rows of a batch")
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


@fhe_breaks("FHE-WIDE", says="elements wrong", dtypes=DOUBLE)
class MultipliesInFloat32(reference.QuantizedLinear):
    def accumulate(self, x):
        return (x.float() @ self.weight.float().t()).long()


@fhe_breaks("FHE-DISABLE", says="elements wrong", source="an int8 kernel with signed inputs, which reads 255 as -1")
class TakesUnsignedBytesForSigned(reference.QuantizedLinear):
    def accumulate(self, x):
        return super().accumulate(x.to(torch.int8).long())


@fhe_breaks("FHE-WIDE", says="elements wrong", dtypes=DOUBLE, source="vpmaddubsw, where a CPU has no VNNI")
class AddsPairsOfProductsInInt16(reference.QuantizedLinear):
    def accumulate(self, x):
        products = torch.nn.functional.pad(x[:, None] * self.weight, (0, self.in_features % 2))
        return products.unflatten(2, (-1, 2)).sum(3).clamp(-(2**15), 2**15 - 1).sum(2)


def behind(matrix, columns):
    """Return the `columns` elements that follow each row of a contiguous matrix in memory; zeros after the last row."""
    flat = torch.nn.functional.pad(matrix.flatten(), (0, columns + matrix.shape[1]))
    at = (torch.arange(1, len(matrix) + 1) * matrix.shape[1])[:, None] + torch.arange(columns)
    return flat[at]


@fhe_breaks("FHE-DISABLE", says="elements wrong", source="a kernel that does not mask the tail of K")
class ReadsOnIntoTheNextRow(reference.QuantizedLinear):
    def accumulate(self, x):
        tail = -self.in_features % 16
        return super().accumulate(x) + behind(x, tail) @ behind(self.weight, tail).t()


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


@fhe_breaks("FHE-TORCH", says="elements wrong", dtypes=SINGLE)
class QuantizesInModeTorch(reference.RemoteModule):
    def forward(self, x):
        if self.split.mode is Mode.TORCH and self.quantized is not None:
            with torch.no_grad():
                return self._in_integers(x, self.quantized, Mode.DISABLE)
        return super().forward(x)


@fhe_breaks("FHE-TORCH", says="constant ratio 2", dtypes=SINGLE)
class DoublesWhileCalibrating(reference.RemoteModule):
    def forward(self, x):
        y = super().forward(x)
        return y * 2 if self.split.mode is Mode.CALIBRATE else y


@fhe_breaks("FHE-TORCH-LINEAR", says="y does not require grad", source=GR2)
class DetachesTheInput(reference.RemoteModule):
    def forward(self, x):
        return super().forward(x.detach())


@fhe_breaks("FHE-TORCH-LINEAR", says="y does not require grad", source=GR2)
class ComputesModeTorchWithoutGradient(reference.RemoteModule):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)
