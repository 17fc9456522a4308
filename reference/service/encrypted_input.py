"""The encryption of one input, which all modules that take this input share."""

import secrets
from dataclasses import dataclass, field

from torch import Tensor

from ..encrypted.keys import Keys


@dataclass(repr=False)
class EncryptedBlock:
    """Encrypted rows, and their keys.

    Attributes:
        name: a random name, by which a server that has the ciphertext finds it.
        sent: whether the server has got it.
    """

    ciphertext: bytes
    keys: Keys
    name: str = field(default_factory=lambda: secrets.token_hex(32))
    sent: bool = False


@dataclass(repr=False)
class EncryptedInput:
    """An input q [M, K] that is encrypted once, block by block, for q, k and v, or for gate and up.

    A module multiplies it at most once: when the same rows come to a module again, they are encrypted anew.
    """

    values: Tensor
    blocks: list[EncryptedBlock] = field(default_factory=list)
    users: set[str] = field(default_factory=set)

    def serves(self, module_name: str, values: Tensor) -> bool:
        """Whether a module may multiply this encryption in place of one of its own input."""
        return (
            module_name not in self.users and values.shape == self.values.shape and bool((values == self.values).all())
        )
