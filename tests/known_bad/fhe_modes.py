"""Known-bad twins of group `fhe`: the modes, their noise, their range, what a backend is given, and training."""

from __future__ import annotations

import torch

import reference
from reference import HybridFHEMode as Mode
from reference.hybrid import BackwardModuleLinear
from reference.noise import noise_std
from tests.right_fhe import fhe_breaks

DOUBLE = ("float64",)
SINGLE = ("float32",)
GR2 = "zama-ai/concrete-ml 23cb7dc4d (#765): private_module(x.detach()) (GR2)"


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


@fhe_breaks("FHE-SIM-EXACT", says="of mode simulate differs from that of disable", dtypes=SINGLE)
class AddsUnroundedNoise(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        if mode is Mode.SIMULATE:
            noise = 0.05 * float(quantized.weight_scale.mean()) * x.abs().mean() / 2**quantized.n_bits
            return y + noise.to(y.dtype) if x.numel() else y
        return y


@fhe_breaks("FHE-SIM-EXACT", says="of mode simulate differs from that of disable", dtypes=SINGLE)
class SimulatesFloats(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        if mode is Mode.SIMULATE:
            return self.private_module(x)
        return super()._in_integers(x, quantized, mode)


@fhe_breaks("FHE-SIM-EXACT", says="of mode simulate differs from that of disable", dtypes=SINGLE)
class RoundsTheNoiseUp(reference.RemoteModule):
    def _with_noise(self, raw):
        return super()._with_noise(raw) + 1


class NoisyBy(reference.RemoteModule):
    """Noise of another deviation."""

    def std(self):
        return self.noise_std

    def _with_noise(self, raw):
        before, self.noise_std = self.noise_std, self.std()
        try:
            return super()._with_noise(raw)
        finally:
            self.noise_std = before


@fhe_breaks("FHE-SIM-NOISE", says="has a deviation of", dtypes=DOUBLE)
class HasNoNoise(NoisyBy):
    def std(self):
        return self.noise_std * 0


@fhe_breaks("FHE-SIM-NOISE", says="has a deviation of", dtypes=DOUBLE)
class HasTwiceTheNoise(NoisyBy):
    def std(self):
        return self.noise_std * 2


@fhe_breaks("FHE-SIM-NOISE", says="has a deviation of", dtypes=DOUBLE)
class HasAQuarterMoreNoise(NoisyBy):
    def std(self):
        return self.noise_std * 1.25


@fhe_breaks("FHE-SIM-NOISE", says="has a deviation of", dtypes=DOUBLE)
class ForgetsTheNoiseOfInputs(NoisyBy):
    def std(self):
        return noise_std(self.split.parameters, self.quantized.weight * 0)


@fhe_breaks("FHE-SIM-NOISE", says="has a deviation of", dtypes=DOUBLE)
class ForgetsHowManyColumnsShareAKey(NoisyBy):
    def std(self):
        return torch.cat([noise_std(self.split.parameters, row[None]) for row in self.quantized.weight])


@fhe_breaks("FHE-SIM-NOISE", says="has a mean of", dtypes=DOUBLE)
class RoundsTheNoiseDown(reference.RemoteModule):
    def _with_noise(self, raw):
        return super()._with_noise(raw) - (self.noise_std / 5).long()


@fhe_breaks("FHE-SIM-NOISE", says="no whole number of units", dtypes=DOUBLE)
class AddsTheNoiseAfterScaling(NoisyBy):
    def std(self):
        return self.noise_std * 0

    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        if mode is Mode.SIMULATE:
            generator = torch.Generator().manual_seed(self.split.noise_seed)
            return y + torch.randn(y.shape, dtype=y.dtype, generator=generator) * float(self.noise_std.mean()) * 1e-4
        return y


@fhe_breaks("FHE-SIM-FRESH", says="from call to call", dtypes=DOUBLE)
class RepeatsItsNoise(reference.RemoteModule):
    def _with_noise(self, raw):
        self.split.noise_seed = 0
        return super()._with_noise(raw)


@fhe_breaks("FHE-SIM-FRESH", says="from row to row", dtypes=DOUBLE)
class HasTheSameNoiseInTwoRows(reference.RemoteModule):
    def _with_noise(self, raw):
        noise = super()._with_noise(raw) - raw
        noise[1::2] = noise[: 2 * (len(noise) // 2) : 2]
        return raw + noise


@fhe_breaks("FHE-RANGE", says="that could wrap modulo", dtypes=SINGLE)
class AcceptsWhatMayWrap(reference.RemoteModule):
    def compiled(self, n_bits, dynamic):
        weight, bias = self.private_module.weight, getattr(self.private_module, "bias", None)
        try:
            return super().compiled(n_bits, dynamic)
        except ValueError as error:
            if "hold" not in str(error):
                raise
            layer = self.quantized_linear(weight, bias, n_bits)
            return layer, noise_std(self.split.parameters, layer.weight)


class RangeOf(reference.QuantizedLinear):
    """The range check with another largest product."""


@fhe_breaks("FHE-RANGE", says="that could wrap modulo", dtypes=SINGLE)
class LeavesNoRoomForNoise(reference.RemoteModule):
    def compiled(self, n_bits, dynamic):
        kind = self.quantized_linear

        class Smaller(kind):
            # as much smaller as the noise of the largest sum
            @property
            def largest_accumulator(layer):  # noqa: N805
                std = noise_std(self.split.parameters, layer.weight)
                return super().largest_accumulator - 8 * float(std.max())

        self.quantized_linear = Smaller
        try:
            return super().compiled(n_bits, dynamic)
        finally:
            self.quantized_linear = kind


@fhe_breaks("FHE-RANGE", says="that could wrap modulo", dtypes=SINGLE)
class ChecksTheMeanColumn(RangeOf):
    @property
    def largest_accumulator(self):
        return super().largest_accumulator // 2


@fhe_breaks("FHE-RANGE", says="raised ValueError", dtypes=SINGLE)
class RefusesWhatCannotWrap(RangeOf):
    @property
    def largest_accumulator(self):
        return (2**self.n_bits - 1) * 2 ** (self.n_bits - 1) * self.in_features


@fhe_breaks("FHE-RANGE", says="was it wrapped?", dtypes=SINGLE)
class WrapsOneBitEarly(reference.RemoteModule):
    def _with_noise(self, raw):
        half = 2 ** (self.split.parameters.bits - 2)
        return (super()._with_noise(raw) + half) % (2 * half) - half


@fhe_breaks("FHE-EXECUTE", says="of mode execute differs from that of disable", dtypes=SINGLE)
class TakesResultsForUnsigned(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        return super()._encrypted(quantized, x, mode) % 2**self.split.parameters.bits


@fhe_breaks("FHE-EXECUTE", says="raised", dtypes=SINGLE)
class EncryptsSignedIntegers(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        shifted = reference.Quantized(x.values - 2**quantized.n_bits, x.scale, x.zero_point)
        return super()._encrypted(quantized, shifted, mode)


class Given:
    """A backend whose `evaluate` is given something else."""

    def __init__(self, backend, change):
        self.backend, self.change = backend, change
        self.keygen, self.decrypt = backend.keygen, backend.decrypt
        self.parameters = backend.parameters

    def encrypt(self, q, keys):
        self.q, self.keys = q, keys
        return self.backend.encrypt(q, keys)

    def evaluate(self, *arguments):
        return self.backend.evaluate(*self.change(self, *arguments))


class Gives(reference.RemoteModule):
    """A remote module that gives the backend something else."""

    def change(self, given, ciphertext, weight, evaluation):
        return ciphertext, weight, evaluation

    def _encrypted(self, quantized, x, mode):
        before = self.split.backend
        self.split.backend = Given(before, self.change)
        try:
            return super()._encrypted(quantized, x, mode)
        finally:
            self.split.backend = before


@fhe_breaks("FHE-EVALUATE", says="evaluate got bytes, Tensor, bytes, Tensor", dtypes=SINGLE)
class SendsTheInputAlong(Gives):
    def change(self, given, ciphertext, weight, evaluation):
        return ciphertext, weight, evaluation, given.q


@fhe_breaks("FHE-EVALUATE", says="evaluate got the secret key", dtypes=SINGLE)
class SendsTheSecretKey(Gives):
    def change(self, given, ciphertext, weight, evaluation):
        return ciphertext, weight, given.keys.secret


@fhe_breaks("FHE-EVALUATE", says="another weight", dtypes=SINGLE)
class SendsTheForwardWeight(Gives):
    def change(self, given, ciphertext, weight, evaluation):
        return ciphertext, weight - 1, evaluation


@fhe_breaks("FHE-EVALUATE", says="mode execute did not call evaluate", dtypes=SINGLE)
class ComputesExecuteInTheClear(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        return quantized.accumulate(x.values)


@fhe_breaks("FHE-EVALUATE", says="is not x in integers", dtypes=SINGLE)
class EncryptsFromOne(Gives):
    def _encrypted(self, quantized, x, mode):
        shifted = reference.Quantized(x.values + 1, x.scale, x.zero_point)
        return super()._encrypted(quantized, shifted, mode) - quantized.weight.sum(1)


@fhe_breaks("FHE-EMPTY", says="raised", dtypes=SINGLE)
class JoinsNoBlocks(reference.RemoteModule):
    def _encrypted(self, quantized, x, mode):
        if not len(x.values):
            return torch.cat([])
        return super()._encrypted(quantized, x, mode)


@fhe_breaks("FHE-MODES", says="is not what it was before", dtypes=SINGLE)
class KeepsTheWidestRange(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y, largest = super()._in_integers(x, quantized, mode), float(x.abs().max()) if x.numel() else 0.0
        self.first = getattr(self, "first", largest)
        self.widest = max(getattr(self, "widest", 0.0), largest)
        return y * (1 + 2**-6) if self.widest > 8 * self.first else y


@fhe_breaks("FHE-MODES", says="is not what it was before", dtypes=SINGLE)
class StaysNoisy(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        if mode is Mode.SIMULATE:
            self.noisy = True
        return y * (1 + 2**-6) if mode is Mode.DISABLE and getattr(self, "noisy", False) else y


@fhe_breaks("FHE-MODES", says="is not what it was before", dtypes=SINGLE)
class LeavesBackwardInItsFirstMode(reference.RemoteModule):
    def forward(self, x):
        if not isinstance(self.private_module, BackwardModuleLinear):
            return super().forward(x)
        before = self.split.mode
        self.count = getattr(self, "count", 0) + 1
        self.split.mode = Mode.TORCH if self.count > 2 else before
        try:
            return super().forward(x)
        finally:
            self.split.mode = before


@fhe_breaks("FHE-MODES", says="is not what it was before", dtypes=SINGLE)
class RoundsTheWeightOnce(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        if mode is Mode.DISABLE and quantized.weight is not None and not hasattr(self, "folded"):
            self.folded = True
            quantized.weight_scale = quantized.weight_scale * (1 + 2**-6)
        return y


class Folded(reference.HybridFHEModel):
    """A model whose step differs."""


@fhe_breaks("FHE-TRAIN", says="gradient of inner", dtypes=DOUBLE)
class DifferentiatesInFloats(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        if isinstance(self.private_module, BackwardModuleLinear):
            return self.private_module(x)
        return super()._in_integers(x, quantized, mode)


@fhe_breaks("FHE-TRAIN", says="gradient of inner", source=GR2, dtypes=DOUBLE)
class LosesTheGradientOfFrozenLayers(reference.RemoteModule):
    def _in_integers(self, x, quantized, mode):
        y = super()._in_integers(x, quantized, mode)
        return y * 0 if isinstance(self.private_module, BackwardModuleLinear) else y


@fhe_breaks("FHE-TRAIN", says="compile_model left gradients behind", dtypes=DOUBLE)
class CompilesWithAStep(Folded):
    def _run_once(self, x):
        self._run(x)


@fhe_breaks("FHE-SKIPPED", says="expected RuntimeError or ValueError", source=GR2, dtypes=DOUBLE)
class GivesASkippedLayerNoGradient(reference.RemoteModule):
    def forward(self, x):
        return super().forward(x.detach()) + 0 * x.sum()


@fhe_breaks("FHE-SKIPPED", says="does not name first", dtypes=DOUBLE)
class DoesNotNameTheSkippedLayer(reference.RemoteModule):
    def forward(self, x):
        try:
            return super().forward(x)
        except RuntimeError as error:
            raise RuntimeError(str(error).replace(self.module_name, "a module")) from None


@fhe_breaks("FHE-NEEDS-DX", says="expected ValueError or RuntimeError", source=GR2, dtypes=SINGLE)
class DetachesInQuantizedModes(reference.RemoteModule):
    def forward(self, x):
        quantized = self.split.mode in (Mode.DISABLE, Mode.SIMULATE)
        return super().forward(x.detach() if quantized else x)
