"""A backend that counts what goes through another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from reference.encrypted.encryption import Backend, Keys
from reference.encrypted.noise import EncryptionParameters


@dataclass
class Traffic:
    """What a client sent and received: encrypted inputs up, encrypted results down, in bytes, and in how many parts."""

    up: int = 0
    down: int = 0
    products: int = 0


class RecordingBackend:
    """`Backend` that leaves all work to another one.

    Args:
        parameters: its parameter set.   make: gives it; called when something is first to be encrypted.
    Attributes:
        traffic: what has gone through `encrypt` and `decrypt` since it was last set.
    """

    def __init__(self, parameters: EncryptionParameters, make: Callable[[EncryptionParameters], Backend]) -> None:
        self.parameters = parameters
        self.make = make
        self.traffic = Traffic()

    @cached_property
    def backend(self) -> Backend:
        """The other one."""
        return self.make(self.parameters)

    def keygen(self) -> Keys:
        """See `Backend`."""
        return self.backend.keygen()

    def encrypt(self, q: Tensor, keys: Keys, **options: Any) -> bytes:
        """See `Backend`."""
        ciphertext = self.backend.encrypt(q, keys, **options)
        self.traffic.up += len(ciphertext)
        return ciphertext

    def evaluate(self, ciphertext: bytes, weight: Tensor, evaluation: bytes, **options: Any) -> bytes:
        """See `Backend`; the server's work, which sends nothing."""
        return self.backend.evaluate(ciphertext, weight, evaluation, **options)

    def decrypt(self, result: bytes, rows: int, columns: int, keys: Keys, **options: Any) -> Tensor:
        """See `Backend`."""
        self.traffic.down += len(result)
        self.traffic.products += 1
        return self.backend.decrypt(result, rows, columns, keys, **options)
