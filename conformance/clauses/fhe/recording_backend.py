"""A backend that encrypts nothing and notes everything, and the parameters that a backend tells."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Parameters:
    """What decides the range and the noise of a product: 2^bits integers, and the numbers of the noise law."""

    name: str = "insecure, for conformance tests"
    polynomial_size: int = 256
    bits: int = 27
    bits_in: int = 60
    bits_out: int = 45
    levels: int = 5
    base_log: int = 7
    secure: bool = False


# The library's defaults, and parameters under which one term of the noise law outweighs the others.
NOISY = {
    "fast": Parameters("fast", 2048, 27, 39, 26, 2, 14),
    "results": Parameters(bits_out=24),
    "digits": Parameters(levels=3, base_log=7),
    "packing": Parameters(polynomial_size=2048, levels=3, base_log=20),
    "inputs": Parameters(bits_in=24),
}
SECRET, EVALUATION = b"the secret key, which stays", b"the evaluation key"


class KeyPair:
    """Two keys that open nothing."""

    secret, evaluation = SECRET, EVALUATION


class Recorder(ABC):  # noqa: B024  (a base from elsewhere tells that others call its methods)
    """A backend of four methods that computes in the clear, behind bytes that say nothing, and keeps notes.

    Attributes:
        encrypted: what was to be encrypted.   given: the arguments of each call of `evaluate`.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.encrypted: list[torch.Tensor] = []
        self.given: list[tuple[Any, ...]] = []
        self.messages: dict[bytes, torch.Tensor] = {}

    def keygen(self) -> KeyPair:
        """The pair of keys."""
        return KeyPair()

    def encrypt(self, q: torch.Tensor, keys: Any, **_: Any) -> bytes:  # noqa: ARG002
        """A message that stands for q."""
        self.encrypted.append(q.detach().clone())
        return self._message("ciphertext", q)

    def evaluate(self, *arguments: Any, **options: Any) -> bytes:
        """A message that stands for the product, if the first argument is one that stands for q."""
        self.given.append((*arguments, *(value for value in options.values() if not callable(value))))
        ciphertext, weight = (*arguments, *options.values())[:2]
        return self._message("result", self.messages[ciphertext] @ weight.t())

    def decrypt(self, result: bytes, rows: int, columns: int, keys: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002
        """The product, wrapped to the range."""
        half = 2 ** (self.parameters.bits - 1)
        raw = self.messages[result].reshape(rows, columns)
        centred: torch.Tensor = (raw + half).remainder(2 * half) - half
        return centred

    def _message(self, kind: str, held: torch.Tensor) -> bytes:
        name = f"{kind} {len(self.messages)}".encode()
        self.messages[name] = held.detach().clone()
        return name


class OwnLaw(Recorder):
    """One whose noise follows a law of its own."""

    def noise_std(self, weight: torch.Tensor) -> torch.Tensor:
        """The deviation of each column's noise: grows with the column's number."""
        return 5.0 + 2.0 * torch.arange(len(weight), dtype=torch.float64)
