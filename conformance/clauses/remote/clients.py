"""The clients of these clauses: two models with fixed weights, split by the target, and the server of both."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.cases.case import Case, Space
from conformance.clauses.fhe.key_pairs import known_keys
from conformance.clauses.fhe.split_model import run, split
from conformance.clauses.fhe.training_step import REMOTE, Chain, StepCase, Trained, training_of
from conformance.clauses.hybrid.frozen_layer import backward
from conformance.clauses.remote.server_process import Server, scratch, served
from conformance.clauses.remote.wire import Wire
from conformance.judgement.outcomes import require
from conformance.numerics.formats import Array
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly, quiet
from conformance.target.subject import Subject

CUSTOM, LORA = ("CustomLinear",), ("LoraTraining", "CustomLinear")
LIBRARIES = "concrete_ml_extensions httpx starlette uvicorn"
K, H, N = 8, 9, 8
BITS = 8
LAYERS, STEP = "layers", "step"  # names of the models
NAMES = [f"{layer}.{product}_module" for layer in ("one", "two") for product in ("forward", "backward")]
# The weights are the same in all cases, so that one server serves them all.
TRAINED = StepCase(m=3, k=K, h=H, n=N, r=2)


@dataclass(frozen=True)
class RemoteCase(Case):
    """A batch for one of the two models.

    Fields:
        m: rows.   lead: the number of leading dimensions.   how: the variant, where a clause has several.
    """

    m: int = 2
    lead: str = "2d"
    how: str = ""

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading dimensions of x."""
        return {"1d": (), "2d": (self.m,), "3d": (self.m, 2)}[self.lead]


def _tamed(case: RemoteCase) -> RemoteCase:
    return dataclasses.replace(case, m=1) if case.lead == "1d" else case


BATCHES = Space(RemoteCase, tame=_tamed, m=(2, 1, 3), lead=("2d", "3d", "1d"))


class Layers(nn.Module):
    """The model `two(one(x))`."""

    def __init__(self, one: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.one, self.two = one, two

    def forward(self, x: torch.Tensor) -> Any:
        return self.two(self.one(x))


class Fan(Layers):
    """The model of two modules over one h, or over an h and another one; its modules have the names of `Layers`."""

    def forward(self, h: torch.Tensor, other: torch.Tensor | None = None) -> Any:
        one: Any = self.one
        two: Any = self.two
        return two.forward_module(h), one.backward_module(h if other is None else other)


def weights() -> dict[str, Array]:
    """The weights and the bias of `Layers`, in float32."""
    random = np.random.default_rng(3)
    drawn = {
        "one": random.standard_normal((H, K)),
        "bias": random.standard_normal(H),
        "two": random.standard_normal((N, H)),
    }
    return {name: values.astype(np.float32) for name, values in drawn.items()}


def layers(subject: Subject, address: str, values: dict[str, Array] | None = None, kind: type[Layers] = Layers) -> Any:
    """The target's compiled HybridFHEModel of two layers, whose forward and backward products are all remote."""
    values = weights() if values is None else values
    held = {name: nn.Parameter(torch.from_numpy(v).to(subject.device), False) for name, v in values.items()}
    with calling("CustomLinear(weight, bias)"):
        custom = subject.target.CustomLinear
        net = kind(custom(held["one"], held["bias"]), custom(held["two"], None))
    hybrid = _split(subject, net, NAMES, LAYERS, address)
    features = H if kind is Fan else K
    x = torch.linspace(-1, 1, 2 * features, device=subject.device).reshape(2, features)
    with calling_quietly(f"compile_model(x, n_bits={BITS})"):
        hybrid.compile_model(x, n_bits=BITS)
    return hybrid


@contextmanager
def connected(subject: Subject) -> Iterator[tuple[Wire, Any]]:
    """A wire to the target's server, and a client with the model of two layers, which has no keys yet."""
    with Wire(server_of(subject).port) as wire:
        yield wire, layers(subject, wire.address)


@contextmanager
def reconnected(subject: Subject) -> Iterator[tuple[Wire, Any]]:
    """As `connected`, with the keys of an earlier client that the server already has, if any."""
    with connected(subject) as (wire, hybrid), known_keys(server_of(subject), hybrid):
        yield wire, hybrid


def step(subject: Subject, address: str) -> tuple[Any, Chain]:
    """The target's compiled HybridFHEModel of a LoraTraining, and the network that it trains."""
    trained = Trained(TRAINED)
    net = trained.net(subject.device).to(torch.float32)
    hybrid = _split(subject, training_of(subject, net), REMOTE, STEP, address)
    batch = tuple(t.to(torch.float32) for t in trained.batch(subject.device))
    with calling_quietly(f"compile_model((x, labels), n_bits={BITS})"):
        hybrid.compile_model(batch, n_bits=BITS)
    return hybrid, net


@contextmanager
def reconnected_step(subject: Subject) -> Iterator[tuple[Any, Chain]]:
    """A `step` connected to the target's server, with the keys that the server already has, if any."""
    server = server_of(subject)
    with Wire(server.port) as wire:
        hybrid, net = step(subject, wire.address)
        with known_keys(server, hybrid):
            yield hybrid, net


def _split(subject: Subject, model: nn.Module, names: list[str], name: str, address: str) -> Any:
    return split(subject, model, names, server_remote_address=address, model_name=name, backend="toy")


SERVERS: dict[Any, Server] = {}


def server_of(subject: Subject) -> Server:
    """The target's server of both models, or of the first only if the target has no LoraTraining."""
    key = subject.thing, subject.device
    if key in SERVERS and SERVERS[key].process.poll() is None:
        return SERVERS[key]
    folder = scratch()
    with _little_to_collect():
        save(layers(subject, "http://127.0.0.1:9"), folder.name)
        if hasattr(subject.target, "LoraTraining"):
            save(step(subject, "http://127.0.0.1:9")[0], folder.name)
    SERVERS[key] = served(subject.target.serve, folder)
    return SERVERS[key]


@contextmanager
def _little_to_collect() -> Iterator[None]:
    """Freeze existing objects: a target that searches the garbage collector for weights then sees only new objects."""
    ours = not gc.get_freeze_count()
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


def save(hybrid: Any, path: str) -> None:
    """Save the server's part of a model and clear it at the client."""
    with calling_quietly("save_and_clear_private_info(path)"):
        hybrid.save_and_clear_private_info(Path(path))


def batch(case: RemoteCase, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The x and g of a case; g also serves as labels."""
    random = np.random.default_rng([case.seed, case.m])
    x, g = (random.standard_normal((math.prod(case.leading), features)) for features in (K, N))
    shaped = x.reshape(*case.leading, K), g.reshape(*case.leading, N)
    return tuple(torch.from_numpy(v.astype(np.float32)).to(device) for v in shaped)  # type: ignore[return-value]


def both(hybrid: Any, mode: str, x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """y and dX of a model in a mode."""
    leaf = x.detach().clone().requires_grad_(True)
    y = run(hybrid, mode, leaf)
    with quiet():
        backward(y, g)
    require(leaf.grad is not None, f"x got no gradient in mode {mode}")
    assert leaf.grad is not None
    return y.detach(), leaf.grad


def same(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], whose: str = "") -> None:
    """Require that y and dX of mode remote are those of mode disable bit for bit."""
    for name, a, b in zip(("y", "dX"), found, expected, strict=True):
        require(a.shape == b.shape, f"{name} of mode remote{whose} has shape {list(a.shape)}: expected {list(b.shape)}")
        require(a.dtype == b.dtype, f"{name} of mode remote{whose} has dtype {a.dtype}: expected {b.dtype}")
        wrong = int((a != b).sum())
        require(
            torch.equal(a, b),
            f"{name} of mode remote{whose} differs from that of mode disable in {wrong} of {a.numel()} elements",
        )
