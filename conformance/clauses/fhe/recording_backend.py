"""A backend that does not encrypt and records every call, and the parameters that a backend declares."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Parameters:
    """The parameters that determine the range of a product, 2^bits integers, and its noise law."""

    name: str = "insecure, for conformance tests"
    polynomial_size: int = 256
    bits: int = 27
    bits_in: int = 60
    bits_out: int = 45
    levels: int = 5
    base_log: int = 7
    secure: bool = False


# The library's defaults, and for each term of the noise law parameters under which it dominates.
NOISY = {
    "fast": Parameters("fast", 2048, 27, 39, 26, 2, 14),
    "results": Parameters(bits_out=24),
    "digits": Parameters(levels=3, base_log=7),
    "packing": Parameters(polynomial_size=2048, levels=3, base_log=20),
    "inputs": Parameters(bits_in=24),
}
SECRET, EVALUATION = b"the secret key, which stays", b"the evaluation key"


class KeyPair:
    """Two keys that encrypt nothing."""

    secret, evaluation = SECRET, EVALUATION


class Recorder(ABC):  # noqa: B024  (the base class marks methods that others call)
    """A backend that computes in the clear, hands out meaningless bytes, and records its calls.

    Attributes:
        encrypted: the arguments q of `encrypt`.   given: the arguments of each call of `evaluate`.
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
        """A message that represents q."""
        self.encrypted.append(q.detach().clone())
        return self._message("ciphertext", q)

    def evaluate(self, *arguments: Any, **options: Any) -> bytes:
        """A message that represents the product; the first argument must be a message from `encrypt`."""
        self.given.append((*arguments, *(value for value in options.values() if not callable(value))))
        ciphertext, weight = (*arguments, *options.values())[:2]
        return self._message("result", self.messages[ciphertext] @ weight.t())

    def decrypt(self, result: bytes, rows: int, columns: int, keys: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002
        """The product, wrapped modulo 2^bits."""
        half = 2 ** (self.parameters.bits - 1)
        raw = self.messages[result].reshape(rows, columns)
        centred: torch.Tensor = (raw + half).remainder(2 * half) - half
        return centred

    def _message(self, kind: str, held: torch.Tensor) -> bytes:
        name = f"{kind} {len(self.messages)}".encode()
        self.messages[name] = held.detach().clone()
        return name


class OwnLaw(Recorder):
    """A recorder that declares its own noise law."""

    def noise_std(self, weight: torch.Tensor) -> torch.Tensor:
        """The standard deviation of each column's noise, which grows with the column index."""
        return 5.0 + 2.0 * torch.arange(len(weight), dtype=torch.float64)
