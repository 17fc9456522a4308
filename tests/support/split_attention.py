"""A split model of three layers over one input, and a backend that notes what it encrypts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reference import HybridFHEModel, Keys, SealBackend

X = torch.linspace(-1, 1, 24).reshape(4, 6)
NAMES = ["q", "k", "v"]


class Attention(nn.Module):
    """Three linear layers over one input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = nn.Linear(6, 5), nn.Linear(6, 3), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)


def split(backend: Any = None, names: list[str] = NAMES) -> HybridFHEModel:
    hybrid = HybridFHEModel(Attention(), names, "http://127.0.0.1:9", backend=backend)
    hybrid.compile_model(X)
    return hybrid


class Recorded(SealBackend):
    """The backend, which notes the arguments of `encrypt` and the keys of `decrypt`."""

    def __init__(self) -> None:
        super().__init__()
        self.encrypted: list[tuple[Tensor, Keys, Any]] = []
        self.decrypted: list[Keys] = []

    def encrypt(self, q: Tensor, keys: Keys, **options: Any) -> bytes:
        self.encrypted.append((q, keys, options))
        return super().encrypt(q, keys, **options)

    def decrypt(self, result: bytes, rows: int, columns: int, keys: Keys, **options: Any) -> Tensor:
        self.decrypted.append(keys)
        return super().decrypt(result, rows, columns, keys, **options)
