"""The state that the remote modules of one model share: mode, keys and backend."""

import enum
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..encrypted.backends import NAMED, backend_for, noise_of_named
from ..encrypted.encryption import Backend, Keys, noise_of
from ..encrypted.envelope import Parameters
from ..encrypted.noise import checked_position
from .client import TIMEOUT, RemoteClient, check_seconds


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
    """

    chosen: str | Backend
    model_name: str
    server: str | None
    verbose: int
    timeout: float = TIMEOUT
    noise_seed: int | None = None
    mode: HybridFHEMode = HybridFHEMode.TORCH
    keys: Keys | None = None
    noise_drawn: int = 0  # number of simulated products so far

    def __post_init__(self) -> None:
        if isinstance(self.chosen, str) and self.chosen not in NAMED:
            raise ValueError(f"backend = {self.chosen!r}: expected one of {', '.join(NAMED)}, or a Backend")
        check_seconds("timeout", self.timeout)
        if self.noise_seed is None:
            self.noise_seed = int(torch.randint(2**63 - 1, ()))
        if isinstance(self.noise_seed, bool) or not isinstance(self.noise_seed, int) or self.noise_seed < 0:
            raise ValueError(f"noise_seed = {self.noise_seed!r}: expected an int, at least 0, or None")

    @property
    def parameters(self) -> Parameters:
        """The backend's parameters."""
        return NAMED[self.chosen] if isinstance(self.chosen, str) else self.chosen.parameters

    @cached_property
    def backend(self) -> Backend:
        """The backend, created when first needed."""
        return backend_for(self.parameters) if isinstance(self.chosen, str) else self.chosen

    @cached_property
    def client(self) -> RemoteClient:
        """The client of the server, created when first needed."""
        assert self.server is not None
        return RemoteClient(self.server, self.timeout)

    def noise_std(self, weight: Tensor) -> Tensor:
        """The deviation of the noise in products with an integer weight."""
        if isinstance(self.chosen, str):  # the library of the backend may not be installed
            return noise_of_named(self.chosen, weight)
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
