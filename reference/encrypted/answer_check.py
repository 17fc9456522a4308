"""A client's check of a server's answers: ``y = q Wᵀ``, by a secret vector and without the weight W."""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .envelope import EncryptionError

PRIME = 2**61 - 1
SIGNS = 201
"""Vectors of signs for a backend with noise: ``(1 - 3/16)^201 < 2^-60``."""


@dataclass(frozen=True, repr=False, eq=False)
class AnswerCheck:
    """The check of one module's answers y [M, N] to inputs q [M, K], in time O(M·(K + N)).

    For exact results: r is uniform modulo the prime p = 2^61 - 1, u = Wᵀ r modulo p, and y is accepted only if
    ``y r = q u`` modulo p in every row. A wrong answer is accepted with a probability of at most 2^-60 over r, which no
    server sees. The answer of a server that knows whether t of its answers were accepted: at most t·2^-60.

    For results with noise of deviations σ_j: r are 201 vectors of random signs, and y is accepted only if
    ``|y r - q u| <= 8·Σ_j σ_j`` for each. A row whose error has twice this Euclidean norm is accepted with a
    probability of at most 2^-60; smaller errors may pass.

    Attributes:
        vector: r: int64 [N], or the signs [N, 201].   image: u: int64 [K], or [K, 201].   Both are on the CPU, and r
            is as secret as a key for integrity: who knows it can forge answers, but not decrypt.
        tolerance: 0, or ``8·Σ_j σ_j``.
    Source: Freivalds (1977), probabilistic machines can use less running time; for the signs the inequality
        P(\\|⟨d, r⟩\\| ≥ ‖d‖/2) ≥ 3/16 of Paley and Zygmund.
    """

    vector: Tensor
    image: Tensor
    tolerance: float = 0.0

    @classmethod
    def of(cls, weight: Tensor, noise_std: Tensor) -> "AnswerCheck":
        """A new check, from the operating system's randomness.

        Args:
            weight: int64 [N, K].   noise_std: the deviation of each result's noise, [N].
        """
        weight, number = weight.cpu(), len(weight)
        if not noise_std.numel() or 8 * float(noise_std.max()) < 0.5:  # rounding removes this noise
            held = np.frombuffer(secrets.token_bytes(8 * number), "<i8") & PRIME
            vector = torch.from_numpy(held % PRIME)
            return cls(vector, products_modulo_prime(weight.t(), vector))
        bits = np.frombuffer(secrets.token_bytes(number * SIGNS), np.uint8).astype(np.int64) & 1
        signs = torch.from_numpy(2 * bits - 1).view(number, SIGNS)
        return cls(signs, weight.t() @ signs, 8 * float(noise_std.sum()))

    def verify(self, q: Tensor, y: Tensor) -> None:
        """Accept a decrypted answer.

        Args:
            q: int64 [M, K].   y: int64 [M, N].
        Raises:
            EncryptionError: with the number of wrong rows and the first of them.
        """
        q, y = q.cpu(), y.cpu()
        if self.tolerance:
            off = y.double() @ self.vector.double() - q.double() @ self.image.double()
            wrong = (off.abs() > self.tolerance).any(1)
        else:
            wrong = products_modulo_prime(y, self.vector) != products_modulo_prime(q, self.image)
        if wrong.any():
            first = int(wrong.int().argmax())
            raise EncryptionError(
                f"the answer is wrong in {int(wrong.sum())} of {len(y)} rows, first in row {first}: expected the "
                f"product of these inputs with the compiled weight; it was forged, answers other inputs, or the server "
                f"multiplied by another weight"
            )

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The check as NumPy arrays, from which `from_arrays` makes it again."""
        return {
            "check_vector": self.vector.numpy(),
            "check_image": self.image.numpy(),
            "check_tolerance": np.array(self.tolerance),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray[Any, Any]], out_features: int, in_features: int) -> "AnswerCheck":
        """The check from the arrays of `to_arrays`.

        Raises:
            KeyError, ValueError: if an array is missing or of another shape.
        """
        tolerance = float(arrays["check_tolerance"])
        rest = (SIGNS,) if tolerance else ()
        found = []
        for name, number in (("check_vector", out_features), ("check_image", in_features)):
            array, expected = arrays[name], (number, *rest)
            if array.shape != expected or array.dtype != np.int64:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}: expected int64 {list(expected)}")
            found.append(torch.from_numpy(array.copy()))
        return cls(found[0], found[1], tolerance)


def weight_digest(weight: Tensor) -> str:
    """A digest of a module's integers and their shape, int64 [N, K] within 16 bits: 64 hexadecimal digits."""
    held = weight.cpu().numpy()
    return hashlib.sha256(f"{list(held.shape)} ".encode() + held.astype("<i2").tobytes()).hexdigest()


def products_modulo_prime(values: Tensor, vector: Tensor) -> Tensor:
    """``values · vector`` modulo the prime.

    Args:
        values: [M, N], any int64.   vector: int64 [N], from 0 to p - 1.
    Returns:
        int64 [M], from 0 to p - 1.
    """
    largest = max(int(values.max()), -int(values.min())) if values.numel() else 0
    if largest.bit_length() + 16 + len(vector).bit_length() > 62:  # the sums below must fit int64
        high = products_modulo_prime(values >> 24, vector)
        return (_rotated(high, 24) + products_modulo_prime(values & (1 << 24) - 1, vector)).remainder_(PRIME)
    limbs = torch.stack([vector >> 16 * i & 0xFFFF for i in range(4)], 1)
    sums = (values @ limbs).remainder_(PRIME)
    return torch.stack([_rotated(sums[:, i], 16 * i) for i in range(4)]).sum(0).remainder_(PRIME)


def _rotated(values: Tensor, by: int) -> Tensor:
    """``values·2^by`` modulo p, from 0 to p: a rotation of 61 bits."""
    return (values & PRIME >> by) << by | values >> 61 - by
