"""A backend and a weight for tests of encryption; conftest.py has fixtures for the keys."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.encrypted.encryption import Backend, ConcreteBackend, Keys
from reference.encrypted.noise import TOY

BACKEND = ConcreteBackend(TOY)
INPUTS = torch.tensor([[1, 2, 3], [4, 5, 6]])
WEIGHT = torch.tensor([[1, -1, 0], [2, 0, -128]])


def product(backend: Backend, q: Tensor, weight: Tensor, keys: Keys) -> Tensor:
    """Compute `q weightᵀ` by encryption, evaluation and decryption."""
    result = backend.evaluate(backend.encrypt(q, keys), weight, keys.evaluation)
    return backend.decrypt(result, len(q), len(weight), keys)
