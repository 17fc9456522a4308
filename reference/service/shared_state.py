"""The mode, the keys and the backend that the remote modules of one model share."""

import enum
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..encrypted.encryption import Backend, ConcreteBackend, Keys, noise_of
from ..encrypted.noise import PARAMETER_SETS, EncryptionParameters, noise_std
from .client import TIMEOUT, RemoteClient, check_seconds


class HybridFHEMode(enum.Enum):
    """What a remote module computes; the whole model follows one mode.

    - torch: the float module.
    - calibrate: the float module, recording the range of its inputs; before compiling.
    - disable: the quantised module, in the clear.
    - simulate: the quantised module as the encrypted one computes it, with its noise and its wrap.
    - execute: encryption, evaluation and decryption in this process.
    - remote: the same, evaluated by a server that never sees a secret key or an input.
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
    """What the remote modules of one model share.

    Only encryption needs the backend's library; compiling and simulating need its parameters alone.
    """

    chosen: str | Backend
    model_name: str
    server: str | None
    verbose: int
    timeout: float = TIMEOUT
    noise_seed: int | None = None
    mode: HybridFHEMode = HybridFHEMode.TORCH
    keys: Keys | None = None
    noise_drawn: int = 0  # how many products were simulated so far, each with noise of its own

    def __post_init__(self) -> None:
        if isinstance(self.chosen, str) and self.chosen not in PARAMETER_SETS:
            raise ValueError(f"backend = {self.chosen!r}: expected one of {', '.join(PARAMETER_SETS)}, or a Backend")
        check_seconds("timeout", self.timeout)
        if self.noise_seed is None:
            self.noise_seed = int(torch.randint(2**63 - 1, ()))
        if isinstance(self.noise_seed, bool) or not isinstance(self.noise_seed, int) or self.noise_seed < 0:
            raise ValueError(f"noise_seed = {self.noise_seed!r}: expected an int, at least 0, or None")

    @property
    def parameters(self) -> EncryptionParameters:
        """The backend's parameters."""
        return PARAMETER_SETS[self.chosen] if isinstance(self.chosen, str) else self.chosen.parameters

    @cached_property
    def backend(self) -> Backend:
        """What encrypts; made when first needed."""
        return ConcreteBackend(self.chosen) if isinstance(self.chosen, str) else self.chosen

    @cached_property
    def client(self) -> RemoteClient:
        """The way to the server."""
        assert self.server is not None
        return RemoteClient(self.server, self.timeout)

    def noise_std(self, weight: Tensor) -> Tensor:
        """The deviation of the noise in products by an integer weight."""
        if isinstance(self.chosen, str):  # its library may not be installed
            return noise_std(self.parameters, weight)
        return noise_of(self.chosen, weight)

    def next_noise(self) -> torch.Generator:
        """What the noise of one more product is drawn from: by the seed and how many there were before."""
        seed: Any = self.noise_seed
        mixed = np.random.SeedSequence(seed, spawn_key=(self.noise_drawn,)).generate_state(1, np.uint64)
        self.noise_drawn += 1
        return torch.Generator().manual_seed(int(mixed[0] >> 1))
