"""Known-bad twins of backend products: a backend's products are wrong, or their noise is not as declared."""

from __future__ import annotations

import numpy as np
import torch

from tests.baselines.fhe_backend import Lattice, backend_breaks


@backend_breaks("FHE-BACKEND-PRODUCT", says="the result differs in")
class TakesResultsForUnsigned(Lattice):
    def rounded(self, phase):
        return super().rounded(phase) % (1 << self.parameters.bits)


@backend_breaks("FHE-BACKEND-PRODUCT", says="has dtype torch.int32: expected torch.int64")
class ReturnsShortIntegers(Lattice):
    def decrypt(self, result, rows, columns, keys):
        return super().decrypt(result, rows, columns, keys).int()


@backend_breaks("FHE-BACKEND-PRODUCT", says="the result differs in")
class HoldsOneBitLess(Lattice):
    def rounded(self, phase):
        half = 1 << (self.parameters.bits - 2)
        return (super().rounded(phase) + half) % (2 * half) - half


@backend_breaks("FHE-BACKEND-NOISE", says="has a deviation of", error=3.0)
class DeclaresHalfItsNoise(Lattice):
    def noise_std(self, weight):
        return super().noise_std(weight) / 2


@backend_breaks("FHE-BACKEND-NOISE", says="has a deviation of", error=3.0)
class DeclaresTwiceItsNoise(Lattice):
    def noise_std(self, weight):
        return super().noise_std(weight) * 2


@backend_breaks("FHE-BACKEND-NOISE", says="has a mean of", error=3.0)
class RoundsUp(Lattice):
    def rounded(self, phase):
        return super().rounded(phase) + 200


@backend_breaks("FHE-BACKEND-NOISE", says="is not zero in")
class IsSeldomWrong(Lattice):
    def rounded(self, phase):
        right = super().rounded(phase)
        right[10::50] += 1
        return right


@backend_breaks("FHE-BACKEND-NOISE", says="correlates by", error=3.0)
class UsesItsErrorsTwice(Lattice):
    def normal(self, shape):
        drawn = super().normal(shape)
        drawn[1::2] = drawn[: 2 * (len(drawn) // 2) : 2]
        return drawn


@backend_breaks("FHE-BACKEND-BOUND", says="the result of rows of ±", error=1e-5)
class DoesNotCheckItsBound(Lattice):
    """Results are declared exact, which the noise of large weights does not allow."""

    def noise_std(self, weight):
        return 0 * super().noise_std(weight)


@backend_breaks("FHE-BACKEND-EMPTY", says="raised")
class StumblesOverNoRows(Lattice):
    def encrypt(self, q, keys):
        _ = q.max()
        return super().encrypt(q, keys)


@backend_breaks("FHE-BACKEND-EMPTY", says="expected [0, ")
class ForgetsTheColumnsOfNoRows(Lattice):
    def decrypt(self, result, rows, columns, keys):
        raw = super().decrypt(result, rows, columns, keys)
        return raw if rows else raw.new_zeros(0)


@backend_breaks("FHE-BACKEND-BYTES", says="raised KeyError")
class KeepsItsCiphertexts(Lattice):
    def __init__(self, error=0.0):
        super().__init__(error)
        self.kept = {}

    def encrypt(self, q, keys):
        self.kept[name := b"ciphertext %d" % len(self.kept)] = super().encrypt(q, keys)
        return name

    def evaluate(self, ciphertext, weight, evaluation):
        return super().evaluate(self.kept[ciphertext], weight, evaluation)


@backend_breaks("FHE-BACKEND-BYTES", says="raised KeyError")
class KeepsItsKeys(Lattice):
    def __init__(self, error=0.0):
        super().__init__(error)
        self.kept = {}

    def keygen(self):
        keys = super().keygen()
        self.kept[keys.evaluation] = keys
        return keys

    def decrypt(self, result, rows, columns, keys):
        return super().decrypt(result, rows, columns, self.kept[keys.evaluation])


@backend_breaks("FHE-BACKEND-OPERANDS", says="the result of operands that are")
class ReadsAsIfPacked(Lattice):
    def encrypt(self, q, keys):
        packed = torch.as_strided(q, q.shape, (q.shape[1], 1)) if q.numel() and q.ndim == 2 else q
        return super().encrypt(packed.clamp(min=0) if (q >= 0).all() else q, keys)


@backend_breaks("FHE-BACKEND-OPERANDS", says="weight was modified in place")
class CentresTheWeight(Lattice):
    def evaluate(self, ciphertext, weight, evaluation):
        result = super().evaluate(ciphertext, weight, evaluation)
        weight -= 1
        return result


@backend_breaks("FHE-BACKEND-OPERANDS", says="NumPy's random state")
class DrawsFromNumPy(Lattice):
    def random(self, count):
        _ = np.random.random()
        return super().random(count)
