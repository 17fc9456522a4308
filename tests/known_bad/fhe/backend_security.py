"""Known-bad twins of backend security: a backend reveals secrets, or accepts wrong operands, keys and bytes."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import torch

from tests.baselines.fhe_backend import HEAD, Keys, Lattice, backend_breaks


@backend_breaks("FHE-BACKEND-INSECURE", says="does not warn")
class SaysNothing(Lattice):
    def warn(self):
        pass


@backend_breaks("FHE-BACKEND-SECRET", says="the evaluation key holds a piece of the secret key")
class GivesItsSecretAway(Lattice):
    def keygen(self):
        keys = super().keygen()
        secret = keys.secret[HEAD.size :]
        whose = HEAD.unpack_from(keys.secret)[1]
        return type(keys)(keys.secret, self.seal(b"EVAL", whose, 0, 0, secret))


@backend_breaks("FHE-BACKEND-RANGE", says="returned bytes: expected ValueError")
class CutsInputsToTheRange(Lattice):
    def encrypt(self, q, keys):
        return super().encrypt(q.clamp(0, 2 ** (self.parameters.bits - 1) - 1), keys)


@backend_breaks("FHE-BACKEND-RANGE", says="encrypt of floats returned bytes")
class TakesFloats(Lattice):
    def encrypt(self, q, keys):
        return super().encrypt(q.long(), keys)


@backend_breaks("FHE-BACKEND-RANGE", says="returned bytes: expected ValueError or TypeError or RuntimeError")
class FitsTheWeight(Lattice):
    def evaluate(self, ciphertext, weight, evaluation):
        _, _, features, _ = self.opened(b"CIPH", ciphertext)
        fitted = torch.nn.functional.pad(weight, (0, features - weight.shape[-1])) if weight.ndim == 2 else weight
        return super().evaluate(ciphertext, fitted, evaluation)


@backend_breaks("FHE-BACKEND-RANGE", says="returned Tensor: expected ValueError or TypeError or RuntimeError")
class ReturnsWhatWasAskedFor(Lattice):
    def decrypt(self, result, rows, columns, keys):
        _, m, n, _ = self.opened(b"PROD", result)
        raw = super().decrypt(result, m, n, keys)
        return raw.flatten().repeat(2)[: rows * columns].reshape(rows, columns)


@backend_breaks("FHE-BACKEND-KEYS", says="with another")
class DoesNotLookWhoseTheyAre(Lattice):
    def same(self, whose, mine):
        pass


@backend_breaks("FHE-BACKEND-KEYS", says="keys exchanged returned bytes")
class TakesEitherKey(Lattice):
    def encrypt(self, q, keys):
        if keys.secret[:4] == b"EVAL":
            keys = Keys(keys.evaluation, keys.secret)
        return super().encrypt(q, keys)


@backend_breaks("FHE-BACKEND-DAMAGED", says="expected ValueError or TypeError or RuntimeError")
class ChecksNoSum(Lattice):
    def opened(self, kind, sealed):
        if isinstance(sealed, bytes) and len(sealed) >= HEAD.size:
            _, whose, rows, columns, _ = HEAD.unpack_from(sealed)
            sealed = self.seal(sealed[:4], whose, rows, columns, sealed[HEAD.size :])
        return super().opened(kind, sealed)


class Panic(BaseException):
    """An exception that is no `Exception`, like the panics of Rust libraries."""


@backend_breaks("FHE-BACKEND-DAMAGED", says="raised Panic")
class Panics(Lattice):
    def opened(self, kind, sealed):
        try:
            return super().opened(kind, sealed)
        except RuntimeError as error:
            raise Panic(str(error)) from None


@backend_breaks("FHE-BACKEND-DAMAGED", says="raised error: unpack_from requires a buffer")
class ReadsBeforeItLooks(Lattice):
    def opened(self, kind, sealed):
        if isinstance(sealed, bytes):
            struct.unpack_from("<4s64s", sealed)
        return super().opened(kind, sealed)


@backend_breaks("FHE-BACKEND-RANDOM", says="two of the ciphertexts of a matrix are the same")
class DrawsFromTorch(Lattice):
    """Random numbers come from torch's generator, which a training script seeds."""

    def random(self, count):
        if count == 16 * 8:
            return super().random(count)
        before = torch.get_rng_state()
        try:
            return torch.randint(0, 256, (count,), dtype=torch.uint8).numpy().tobytes()
        finally:
            torch.set_rng_state(before)


@backend_breaks("FHE-BACKEND-RANDOM", says="two of secret keys are the same")
class HasOneSecret(Lattice):
    def keygen(self):
        before, self.random = self.random, lambda count: np.random.default_rng(7).bytes(count)
        try:
            return super().keygen()
        finally:
            self.random = before


@backend_breaks("FHE-BACKEND-SECRET", says="the ciphertext holds a row of the inputs")
class SendsInputsAlong(Lattice):
    def encrypt(self, q, keys):
        sealed = super().encrypt(q, keys)
        kind, whose, rows, columns, _ = HEAD.unpack_from(sealed)
        return self.seal(kind, whose, rows, columns, sealed[HEAD.size :] + q.numpy().astype("<u2").tobytes())

    def halves(self, held, rows, columns):
        return super().halves(held[: rows * columns * 17 * 8], rows, columns)


@dataclasses.dataclass(frozen=True)
class Shown:
    """Keys whose repr is a dataclass's and shows the secret key."""

    secret: bytes
    evaluation: bytes


@backend_breaks("FHE-BACKEND-SECRET", says="shows the secret key")
class ShowsItsKeys(Lattice):
    def keygen(self):
        return Shown(*dataclasses.astuple(super().keygen()))
