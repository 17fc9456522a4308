"""Two models with small integer weights, which a server can load, and a client with its own keys."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reference.service.client import RemoteClient, RemoteError
from tests.support.server import PATIENCE, PlainBackend, Server, save_model

PLAIN = ("--backend", "tests.support.server:PlainBackend")
TAMED = ("--backend", "tests.support.server:TamedBackend")
STALL = 4.0  # seconds that the shared server waits for a client that sends nothing

generator = torch.Generator().manual_seed(7)
MODELS = {
    "one": {"fc.forward_module": (5, 7), "fc.backward_module": (7, 5)},
    "two": {"fc.forward_module": (3, 7), "wide": (64, 2)},
}
WEIGHTS = {
    model: {name: torch.randint(-128, 128, shape, generator=generator) for name, shape in modules.items()}
    for model, modules in MODELS.items()
}
BACKEND = PlainBackend()
EVALUATE = "/evaluate?model=one&module=fc.forward_module"
A_KEY = "Evaluation-Key: " + "0" * 64


class Client:
    """A client with its own keys."""

    def __init__(self, address: str, timeout: float = PATIENCE, **access: Any) -> None:
        self.remote, self.keys = RemoteClient(address, timeout, **access), BACKEND.keygen()

    def inputs(self, model: str = "one", module: str = "fc.forward_module", rows: int = 3) -> Tensor:
        return torch.randint(0, 256, (rows, MODELS[model][module][1]))

    def product(self, q: Tensor, model: str = "one", module: str = "fc.forward_module") -> Tensor:
        result = self.remote.evaluate(model, module, BACKEND.encrypt(q, self.keys), self.keys.evaluation)
        return BACKEND.decrypt(result, len(q), len(WEIGHTS[model][module]), self.keys)

    def is_right(self, model: str = "one", module: str = "fc.forward_module") -> bool:
        q = self.inputs(model, module)
        return torch.equal(self.product(q, model, module), q @ WEIGHTS[model][module].t())

    def uploads(self, server: Server) -> int:
        """Count the uploads of this client's evaluation key."""
        name = hashlib.sha256(self.keys.evaluation).hexdigest()[:8]
        return sum(f"PUT /keys/{name}" in line for line in server.logged())

    def refusal(self, **changes: Any) -> str:
        """Send a changed request and return the error's message."""
        given = {
            "model_name": "one",
            "module_name": "fc.forward_module",
            "ciphertext": BACKEND.encrypt(self.inputs(), self.keys),
            "evaluation": self.keys.evaluation,
        }
        with pytest.raises(RemoteError) as caught:
            self.remote.evaluate(**given | changes)
        return str(caught.value)


def save_models(folder: Path) -> Path:
    """Save both models in a folder and return it."""
    for name, weights in WEIGHTS.items():
        save_model(folder / name, weights)
    return folder


def http(path: str, *headers: str, method: str = "POST", body: bytes = b"") -> bytes:
    """Return the bytes of an HTTP request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: here", *headers, "", ""]).encode() + body
