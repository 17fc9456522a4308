"""Contents of the wire: ciphertexts, results, names and one evaluation key, but nothing private to the client."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from conformance.clauses.fhe.key_pairs import known_keys
from conformance.clauses.fhe.leak_search import numbers_found, searchable, secret_found
from conformance.clauses.remote.clients import (
    BATCHES,
    BITS,
    CUSTOM,
    LIBRARIES,
    LORA,
    Fan,
    H,
    RemoteCase,
    batch,
    both,
    connected,
    layers,
    server_of,
    step,
)
from conformance.clauses.remote.wire import Wire
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

CALLS = 3
SAMPLES, SAMPLE = 64, 64  # the number of pieces of the sent bytes to search for repetitions, and their length


@clause(
    "REM-TRAFFIC",
    sentence="""In a training step nothing that crosses the wire contains an activation, a gradient, a label, the
    loss, a bias, an adapter or the secret key: neither as floats, as integers or as text, nor encoded in base64 or
    hexadecimal.""",
    cases=BATCHES.narrowed(m=(3,), lead=("2d",)),
    dtypes=("float32",),
    needs=LORA,
    library=LIBRARIES,
    weight=0.08,
)
def test_nothing_private_crosses(subject: Subject, case: RemoteCase) -> float | None:
    x, labels = batch(case, subject.device)
    planted = {"an activation": x, "a label": labels}

    def take(_: Any, given: tuple[torch.Tensor, ...]) -> None:
        hidden: Any = given[0]
        planted["a hidden activation"] = hidden.detach().clone()
        if hidden.requires_grad:
            hidden.register_hook(lambda g: planted.update({"a gradient": g.detach().clone()}))

    with Wire(server_of(subject).port) as wire:
        hybrid, net = step(subject, wire.address)
        planted |= {f"the adapter {name}": p.detach().clone() for name, p in net.named_parameters() if "lora_" in name}
        planted |= {"the bias": net.inner.base_layer.bias.detach().clone()}
        net.outer.register_forward_pre_hook(take)
        with calling_quietly("the step with fhe='remote'"):
            returned = hybrid((x.clone(), labels.clone()), fhe="remote")
        traffic = wire.traffic()
        keys = getattr(hybrid, "keys", None)
    secret, public = getattr(keys, "secret", None), getattr(keys, "evaluation", None)
    text = searchable(traffic, public if isinstance(public, bytes) else b"")
    require("a gradient" in planted, "the step gave no gradient to the hidden activation between the layers")
    require(bool(traffic), "mode remote sent nothing to the server")
    loss = returned[0] if isinstance(returned, tuple) else returned
    numbers = {name: tensor.double().cpu().numpy() for name, tensor in planted.items()}
    found = numbers_found(text, numbers, BITS)
    for name, form in found.items():
        require(False, f"{name} crosses the wire: {form}")
    if isinstance(loss, torch.Tensor) and abs(float(loss.detach())) > 1e-3:
        require(not numbers_found(text, {"": np.array([float(loss.detach())])}, BITS), "the loss crosses the wire")
    if isinstance(secret, bytes):
        require(not secret_found(text, secret), "the secret key crosses the wire")
    return None


@clause(
    "REM-KEY-ONCE",
    sentence="""The evaluation key crosses the wire once for all calls and modules of a model: no large part of the
    traffic crosses twice, and later calls use the same key.""",
    why="An evaluation key can be more than 100 MB.",
    cases=BATCHES.narrowed(m=(2,), lead=("2d",)),
    dtypes=("float32",),
    needs=CUSTOM,
    library=LIBRARIES,
    weight=0.08,
)
def test_key_crosses_once(subject: Subject, case: RemoteCase) -> float | None:
    x, g = batch(case, subject.device)
    with connected(subject) as (wire, hybrid):
        keys = set()
        for _ in range(CALLS):
            both(hybrid, "remote", x, g)
            keys.add(getattr(getattr(hybrid, "keys", None), "evaluation", None))
        sent = wire.traffic()[: len(wire.sent)]
    text = b"".join(sent)
    require(bool(text), "mode remote sent nothing to the server")
    require(len(keys) == 1, f"{CALLS} calls had {len(keys)} evaluation keys: one is to cross, once")
    distance = max(SAMPLE, len(text) // SAMPLES)
    pieces = [text[at : at + SAMPLE] for at in range(0, len(text) - SAMPLE, distance)]
    times = [text.count(piece) for piece in pieces if len(set(piece)) > SAMPLE // 2]  # ignores headers and zeros
    twice = sum(many > 1 for many in times)
    require(
        twice * 4 < len(times),
        f"{twice} of {len(times)} samples of what was sent in {CALLS} calls crossed more than once, up to "
        f"{max(times, default=0)} times: the evaluation key is to cross once",
    )
    return None


@clause(
    "REM-SHARED-INPUTS",
    sentence="""In mode remote an input that several modules of a model take, as q, k and v do, crosses the wire once:
    two modules over one input send hardly more than half of what they send over two inputs.""",
    why="The upload of an input costs more than its products, and attention would pay three times.",
    cases=BATCHES.narrowed(m=(2, 3), lead=("2d",)),
    dtypes=("float32",),
    needs=CUSTOM,
    library=LIBRARIES,
    feature="shared_inputs",
    weight=0.08,
)
def test_shared_input_crosses_once(subject: Subject, case: RemoteCase) -> float | None:
    x, g = (torch.cat([t, t[:, :1]], 1) for t in batch(case, subject.device))  # [m, H]
    assert x.shape[-1] == H
    server = server_of(subject)
    with Wire(server.port) as wire:
        hybrid, sent = layers(subject, wire.address, kind=Fan), {}
        with known_keys(server, hybrid):
            for given in ((x, g), (x, g), (x,)):  # the first call may upload a key
                before = wire.sent_bytes()
                expected, found = (_products(hybrid, mode, given) for mode in ("disable", "remote"))
                sent[len(given)] = wire.sent_bytes() - before
                for name, a, b in zip(("first", "second"), found, expected, strict=True):
                    require(torch.equal(a, b), f"the {name} of two products of mode remote differs from mode disable")
    require(
        sent[1] < 0.75 * sent[2],
        f"two modules over one input sent {sent[1]} bytes, and {sent[2]} over two inputs: an input is to cross once",
    )
    return None


def _products(hybrid: Any, mode: str, given: tuple[torch.Tensor, ...]) -> Any:
    with calling_quietly(f"the model with fhe={mode!r}"):
        return hybrid(tuple(t.clone() for t in given), fhe=mode)
