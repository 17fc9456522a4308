"""Known-bad twins of mode simulate: the simulated noise does not follow its law."""

from __future__ import annotations

import torch

import reference
from reference import HybridFHEMode as Mode
from reference.encrypted.noise import noise_std, simulate
from tests.baselines.fhe import fhe_breaks

DOUBLE = ("float64",)
SINGLE = ("float32",)


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
    """Noise with the standard deviation that `std` returns."""

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
        return self.split.noise_std(self.quantized.weight * 0)


@fhe_breaks("FHE-SIM-NOISE", says="has a deviation of", dtypes=DOUBLE)
class ForgetsHowManyColumnsShareAKey(NoisyBy):
    def std(self):
        return torch.cat([self.split.noise_std(row[None]) for row in self.quantized.weight])


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
            noise = torch.randn(y.shape, dtype=y.dtype, generator=self.split.next_noise())
            return y + noise * float(self.noise_std.mean()) * 1e-4
        return y


@fhe_breaks("FHE-SIM-NOISE", says="correlates by", dtypes=DOUBLE)
class DrawsEachColumnForItself(reference.RemoteModule):
    def _with_noise(self, raw):
        columns = zip(raw.t(), self.noise_std, strict=True)
        return torch.stack([self.of_column(column, std) for column, std in columns], 1)

    def of_column(self, raw, std):
        return simulate(raw[:, None], std[None], self.split.parameters.bits, self.split.next_noise())[:, 0]


@fhe_breaks("FHE-SIM-NOISE", says="has a deviation of", dtypes=DOUBLE)
class KnowsOneLawAlone(NoisyBy):
    def std(self):
        return noise_std(self.split.parameters, self.quantized.weight)


@fhe_breaks("FHE-SIM-FRESH", says="from call to call", dtypes=DOUBLE)
class RepeatsItsNoise(reference.RemoteModule):
    def _with_noise(self, raw):
        self.split.noise_drawn = 0
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
            return layer, self.split.noise_std(layer.weight)


class RangeOf(reference.QuantizedLinear):
    """An integer layer whose range check uses a wrong largest accumulator."""


@fhe_breaks("FHE-RANGE", says="that could wrap modulo", dtypes=SINGLE)
class LeavesNoRoomForNoise(reference.RemoteModule):
    def compiled(self, n_bits, dynamic):
        kind = self.quantized_linear

        class Smaller(kind):
            # smaller by the noise's share of the range check
            @property
            def largest_accumulator(layer):  # noqa: N805
                std = self.split.noise_std(layer.weight)
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
