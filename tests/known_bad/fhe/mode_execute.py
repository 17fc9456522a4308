"""Known-bad twins of mode execute: mode execute encrypts wrongly, skips the encryption, or sends a secret."""

from __future__ import annotations

import torch

import reference
from tests.baselines.fhe import fhe_breaks

DOUBLE = ("float64",)
SINGLE = ("float32",)


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
    """A backend whose `evaluate` gets arguments changed by `change`."""

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
    """A remote module that passes changed arguments to its backend's `evaluate`."""

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


class PretendsToEncrypt(reference.RemoteModule):
    """Mode execute without encryption; the noise is drawn."""

    def noise(self, raw):
        return self._with_noise(raw) - raw

    def _encrypted(self, quantized, x, mode):
        raw = quantized.accumulate(x.values)
        return raw + self.noise(raw)


@fhe_breaks("FHE-EXECUTE-NOISE", says="has a deviation of 0 in", dtypes=DOUBLE)
class ReturnsTheExactProduct(PretendsToEncrypt):
    def noise(self, raw):
        return raw * 0


@fhe_breaks("FHE-EXECUTE-NOISE", says="has a deviation of", dtypes=DOUBLE)
class HasTwiceTheNoiseOfTheLaw(PretendsToEncrypt):
    def noise(self, raw):
        return 2 * super().noise(raw)


@fhe_breaks("FHE-EXECUTE-NOISE", says="has a mean of", dtypes=DOUBLE)
class RoundsResultsUp(PretendsToEncrypt):
    def noise(self, raw):
        return super().noise(raw) + 30


@fhe_breaks("FHE-EXECUTE-NOISE", says="of two columns of a row correlates by", dtypes=DOUBLE)
class EncryptsEachColumnForItself(PretendsToEncrypt):
    def noise(self, raw):
        drawn = [super(EncryptsEachColumnForItself, self).noise(raw) for _ in range(raw.shape[1])]
        return torch.stack([noise[:, column] for column, noise in enumerate(drawn)], 1)


@fhe_breaks("FHE-EXECUTE-NOISE", says="from row to row", dtypes=DOUBLE)
class EncryptsTwoRowsAlike(PretendsToEncrypt):
    def noise(self, raw):
        noise = super().noise(raw)
        noise[1::2] = noise[: 2 * (len(noise) // 2) : 2]
        return noise
