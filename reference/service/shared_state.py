"""The state that the remote modules of one model share: mode, keys and backend."""

import enum
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..encrypted.backends import DEFAULT, NAMED, backend_for, default_name, noise_of_named
from ..encrypted.encryption import Backend, Keys, noise_of
from ..encrypted.envelope import Parameters
from ..encrypted.noise import checked_position
from .access import check_address
from .client import TIMEOUT, RemoteClient, RemoteError, check_seconds
from .encrypted_input import EncryptedBlock, EncryptedInput

ROWS_AT_ONCE = 64  # rows in one ciphertext: bounds memory and a request's size, and lets a long run show progress


class HybridFHEMode(enum.Enum):
    """The mode of a remote module; all modules of a model have the same mode.

    - torch: run the float module.
    - calibrate: run the float module and record the range of its inputs; before compiling.
    - disable: run the quantised module in the clear.
    - simulate: run the quantised module with the noise and the wrap of the encrypted one.
    - execute: encrypt, evaluate and decrypt in this process.
    - remote: as execute, but a server evaluates, which never sees a secret key or an input.
    """

    TORCH = "torch"
    CALIBRATE = "calibrate"
    DISABLE = "disable"
    SIMULATE = "simulate"
    EXECUTE = "execute"
    REMOTE = "remote"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"mode {value!r}: expected one of {', '.join(mode.value for mode in cls)}")


@dataclass
class Split:
    """The state that the remote modules of one model share.

    Only encryption needs the backend's library; compiling and simulating need only its parameters.

    Attributes:
        shared: the last encrypted input.   served: the digests of the server's modules, once it was asked.
    """

    chosen: str | Backend | None
    model_name: str
    server: str | RemoteClient | None
    verbose: int
    timeout: float = TIMEOUT
    noise_seed: int | None = None
    mode: HybridFHEMode = HybridFHEMode.TORCH
    keys: Keys | None = None
    noise_drawn: int = 0  # number of simulated products so far
    shared: EncryptedInput | None = None
    served: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        self.by_default = self.chosen is None
        if self.chosen is None:
            self.chosen = default_name()
        if isinstance(self.chosen, str) and self.chosen not in NAMED:
            raise ValueError(f"backend = {self.chosen!r}: expected one of {', '.join(NAMED)}, or a Backend")
        check_seconds("timeout", self.timeout)
        if isinstance(self.server, str):
            check_address(self.server)
        if self.noise_seed is None:
            self.noise_seed = int(torch.randint(2**63 - 1, (), device="cpu"))  # whatever the default device
        if isinstance(self.noise_seed, bool) or not isinstance(self.noise_seed, int) or self.noise_seed < 0:
            raise ValueError(f"noise_seed = {self.noise_seed!r}: expected an int, at least 0, or None")

    @property
    def parameters(self) -> Parameters:
        """The backend's parameters."""
        assert self.chosen is not None
        return NAMED[self.chosen] if isinstance(self.chosen, str) else self.chosen.parameters

    @cached_property
    def backend(self) -> Backend:
        """The backend, created when first needed.

        Warns:
            UserWarning: if it is a slow one, because seal-python is not installed.
        """
        assert self.chosen is not None
        if self.by_default and self.chosen != DEFAULT:
            warnings.warn(
                f"the backend {self.chosen} encrypts, because seal-python is not installed, which the default backend "
                f"{DEFAULT} needs: a row takes seconds in place of milliseconds; pip install 'loraspec[fhe]'",
                stacklevel=2,
            )
        return backend_for(self.parameters) if isinstance(self.chosen, str) else self.chosen

    def adopt(self, parameters: Parameters) -> None:
        """Use the parameters of a saved model, unless another backend was asked for.

        Raises:
            ValueError: naming both.
        """
        own, saved = self.parameters, parameters.fingerprint()
        if saved == own.fingerprint():
            return
        name = next((name for name, named in NAMED.items() if named.fingerprint() == saved), None)
        if not self.by_default:
            expected = f"a backend with the parameters {parameters.name}" if name is None else f"backend={name!r}"
            raise ValueError(f"the model was saved for other parameters than {own.name}: expected {expected}")
        self.chosen, self.by_default = name or backend_for(parameters), False
        vars(self).pop("backend", None)

    @property
    def rows_at_once(self) -> int:
        """The rows of one ciphertext."""
        return int(getattr(self.backend, "rows_at_once", ROWS_AT_ONCE))

    @cached_property
    def client(self) -> RemoteClient:
        """The client of the server, created when first needed."""
        assert self.server is not None
        return self.server if isinstance(self.server, RemoteClient) else RemoteClient(self.server, self.timeout)

    def encrypted(self, values: Tensor, module_name: str) -> EncryptedInput:
        """The encryption of an input for a module: the last one, if another module took the same input."""
        if self.shared is None or not self.shared.serves(module_name, values):
            self.shared = EncryptedInput(values)
        self.shared.users.add(module_name)
        return self.shared

    def encrypt(self, rows: Tensor, outputs: int) -> EncryptedBlock:
        """Rows encrypted for products with so many outputs, under new keys if the backend wants them."""
        backend: Any = self.backend
        if self.keys is None or getattr(backend, "fresh_keys", False):
            self.keys = backend.keygen()
        options = {"outputs": outputs} if getattr(backend, "takes_outputs", False) else {}
        return EncryptedBlock(backend.encrypt(rows, self.keys, **options), self.keys)

    def check_served(self, digests: Mapping[str, str]) -> None:
        """Check that the server has these modules with these integers; it is asked once.

        Raises:
            RemoteError: naming the first module that differs.
        """
        if self.served is None:
            self.served = self.client.digests(self.model_name)
        for name, digest in digests.items():
            there = self.served.get(name)
            if there != digest:
                other = "no digest" if there is None else f"other integers, of the digest {there[:12]},"
                self.served = None
                raise RemoteError(
                    f"model {self.model_name} at {self.client.address} has {other} for {name}: expected {digest[:12]}, "
                    f"as compiled here; another model, or another version, is served under this name; nothing was sent"
                )

    def forget(self) -> None:
        """Drop the last encrypted input and what the server said."""
        self.shared = self.served = None

    def noise_std(self, weight: Tensor) -> Tensor:
        """The deviation of the noise in products with an integer weight."""
        if isinstance(self.chosen, str):  # the library of the backend may not be installed
            return noise_of_named(self.chosen, weight)
        assert self.chosen is not None
        return noise_of(self.chosen, weight)

    @property
    def noise_position(self) -> tuple[int, int]:
        """The seed of the noise of mode simulate, and the number of products that have drawn noise so far."""
        assert self.noise_seed is not None
        return self.noise_seed, self.noise_drawn

    @noise_position.setter
    def noise_position(self, position: tuple[int, int]) -> None:
        self.noise_seed, self.noise_drawn = checked_position(position)

    def next_noise(self) -> torch.Generator:
        """The generator for the noise of the next product, from the seed and the number of products so far."""
        seed: Any = self.noise_seed
        mixed = np.random.SeedSequence(seed, spawn_key=(self.noise_drawn,)).generate_state(1, np.uint64)
        self.noise_drawn += 1
        return torch.Generator().manual_seed(int(mixed[0] >> 1))
