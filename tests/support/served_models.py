"""Two models of small integer weights, saved for a server, and a client of them with keys of its own."""

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
STALL = 4.0  # seconds that the shared server grants a client that sends nothing

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
    """A client with keys of its own."""

    def __init__(self, address: str, timeout: float = PATIENCE) -> None:
        self.remote, self.keys = RemoteClient(address, timeout), BACKEND.keygen()

    def inputs(self, model: str = "one", module: str = "fc.forward_module", rows: int = 3) -> Tensor:
        return torch.randint(0, 256, (rows, MODELS[model][module][1]))

    def product(self, q: Tensor, model: str = "one", module: str = "fc.forward_module") -> Tensor:
        result = self.remote.evaluate(model, module, BACKEND.encrypt(q, self.keys), self.keys.evaluation)
        return BACKEND.decrypt(result, len(q), len(WEIGHTS[model][module]), self.keys)

    def is_right(self, model: str = "one", module: str = "fc.forward_module") -> bool:
        q = self.inputs(model, module)
        return torch.equal(self.product(q, model, module), q @ WEIGHTS[model][module].t())

    def uploads(self, server: Server) -> int:
        """How often its key was uploaded."""
        name = hashlib.sha256(self.keys.evaluation).hexdigest()[:8]
        return sum(f"PUT /keys/{name}" in line for line in server.logged())

    def refusal(self, **changes: Any) -> str:
        """What the error says if a request is changed so."""
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
    """Both models in a folder, which is returned."""
    for name, weights in WEIGHTS.items():
        save_model(folder / name, weights)
    return folder


def http(path: str, *headers: str, method: str = "POST", body: bytes = b"") -> bytes:
    """An HTTP request, as bytes."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: here", *headers, "", ""]).encode() + body
