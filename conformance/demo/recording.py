"""A backend that counts the traffic of another backend."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from reference.encrypted.backends import MakeBackend, backend_for
from reference.encrypted.encryption import Backend, Keys, noise_of
from reference.encrypted.envelope import Parameters
from reference.encrypted.noise import EncryptionParameters, noise_std
from reference.service.shared_state import ROWS_AT_ONCE


@dataclass
class Traffic:
    """The traffic of a client: bytes of encrypted inputs up and of encrypted results down, and the number of parts."""

    up: int = 0
    down: int = 0
    products: int = 0


class RecordingBackend:
    """A `Backend` that delegates all work to another backend.

    Args:
        parameters: the other backend's parameter set.   make: creates the other backend at its first use.
    Attributes:
        traffic: the traffic of `encrypt` and `decrypt` since it was last set.
    """

    def __init__(self, parameters: Parameters, make: MakeBackend = backend_for) -> None:
        self.parameters = parameters
        self.make = make
        self.traffic = Traffic()

    @cached_property
    def backend(self) -> Backend:
        """The other backend."""
        return self.make(self.parameters)

    @property
    def fresh_keys(self) -> bool:
        """See `Backend`."""
        return bool(getattr(self.backend, "fresh_keys", False))

    @property
    def rows_at_once(self) -> int:
        """See `Backend`."""
        return int(getattr(self.backend, "rows_at_once", ROWS_AT_ONCE))

    @property
    def takes_outputs(self) -> bool:
        """See `Backend`."""
        return bool(getattr(self.backend, "takes_outputs", False))

    def result_bytes(self, ciphertext: bytes, columns: int) -> int | None:
        """See `Backend`; None if the other backend does not know."""
        measure = getattr(self.backend, "result_bytes", None)
        return None if measure is None else int(measure(ciphertext, columns))

    def noise_std(self, weight: Tensor) -> Tensor:
        """See `Backend`; without making the other backend, if its parameters tell."""
        if isinstance(self.parameters, EncryptionParameters):
            return noise_std(self.parameters, weight)
        return noise_of(self.backend, weight)

    def keygen(self) -> Keys:
        """See `Backend`."""
        return self.backend.keygen()

    def encrypt(self, q: Tensor, keys: Keys, **options: Any) -> bytes:
        """See `Backend`."""
        ciphertext = self.backend.encrypt(q, keys, **options)
        self.traffic.up += len(ciphertext)
        return ciphertext

    def evaluate(self, ciphertext: bytes, weight: Tensor, evaluation: bytes, **options: Any) -> bytes:
        """See `Backend`; not counted, because it is the server's work."""
        return self.backend.evaluate(ciphertext, weight, evaluation, **options)

    def decrypt(self, result: bytes, rows: int, columns: int, keys: Keys, **options: Any) -> Tensor:
        """See `Backend`."""
        self.traffic.down += len(result)
        self.traffic.products += 1
        return self.backend.decrypt(result, rows, columns, keys, **options)
