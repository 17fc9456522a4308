"""Results of mode remote: a server in another process computes the same as mode disable."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import torch

from conformance.clauses.fhe.split_model import run
from conformance.clauses.hybrid.frozen_layer import backward
from conformance.clauses.remote.clients import (
    BATCHES,
    CUSTOM,
    LIBRARIES,
    LORA,
    RemoteCase,
    batch,
    both,
    layers,
    reconnected,
    reconnected_step,
    same,
    server_of,
)
from conformance.clauses.remote.wire import Wire
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.expected_errors import calling_quietly, quiet
from conformance.target.subject import Subject

PATIENCE = 100.0  # seconds for all threads together; only a failure waits so long


@clause(
    "REM-RESULT",
    sentence="""Mode remote gives the y and dX of mode disable bit for bit, and the server computes both the forward
    and the backward product.""",
    cases=BATCHES,
    dtypes=("float32",),
    needs=CUSTOM,
    library=LIBRARIES,
    weight=0.34,
)
def test_remote_is_disable(subject: Subject, case: RemoteCase) -> float | None:
    x, g = batch(case, subject.device)
    with reconnected(subject) as (wire, hybrid):
        expected = both(hybrid, "disable", x, g)
        require(wire.sent_bytes() == 0, "mode disable sent something to the server")
        leaf = x.detach().clone().requires_grad_(True)
        run(hybrid, "remote", leaf)  # the first call may also ask which model the server has
        opened = wire.sent_bytes()
        y = run(hybrid, "remote", leaf)
        forward = wire.sent_bytes()
        require(forward > opened, "mode remote sent nothing to the server for the forward product")
        with quiet():
            backward(y, g)
        require(wire.sent_bytes() > forward, "mode remote sent nothing to the server for the backward product")
    require(leaf.grad is not None, "x got no gradient in mode remote")
    assert leaf.grad is not None
    same((y.detach(), leaf.grad), expected)
    return None


@clause(
    "REM-EMPTY",
    sentence="In mode remote an empty batch gives an empty y and an empty dX.",
    cases=BATCHES.narrowed(m=(0,), lead=("2d", "3d")),
    dtypes=("float32",),
    needs=CUSTOM,
    library=LIBRARIES,
    weight=0.17,
)
def test_empty_batch_remotely(subject: Subject, case: RemoteCase) -> float | None:
    x, g = batch(case, subject.device)
    with reconnected(subject) as (_, hybrid):
        y, dX = both(hybrid, "remote", x, g)
    for name, tensor, like in (("y", y, g), ("dX", dX, x)):
        require(tensor.shape == like.shape, f"{name} has shape {list(tensor.shape)}: expected {list(like.shape)}")
    return None


@clause(
    "REM-TRAIN",
    sentence="A LoraTraining step in mode remote gives each adapter the same gradient as in mode disable, bit for bit.",
    cases=BATCHES.narrowed(lead=("2d",)),
    dtypes=("float32",),
    needs=LORA,
    library=LIBRARIES,
    weight=0.17,
)
def test_training_step_remotely(subject: Subject, case: RemoteCase) -> float | None:
    x, labels = batch(case, subject.device)
    with reconnected_step(subject) as (hybrid, net):
        adapters = {name: value for name, value in net.named_parameters() if "lora_" in name}
        gradients = {}
        for mode in ("disable", "remote"):
            for adapter in adapters.values():
                adapter.grad = None
            with calling_quietly(f"the step with fhe={mode!r}"):
                hybrid((x.clone(), labels.clone()), fhe=mode)
            gradients[mode] = {name: value.grad for name, value in adapters.items()}
    for name in adapters:
        expected, found = gradients["disable"][name], gradients["remote"][name]
        require(expected is not None and bool(expected.any()), f"{name} got no gradient in mode disable")
        require(found is not None, f"{name} got no gradient in mode remote")
        assert expected is not None
        assert found is not None
        wrong = int((expected != found).sum())
        require(
            torch.equal(expected, found),
            f"the gradient of {name} in mode remote differs from that of mode disable in {wrong} of {found.numel()}",
        )
    return None


ROUNDS = 2


@clause(
    "REM-TWO-CLIENTS",
    sentence="Two clients with their own keys that use one server at the same time each get their own right results.",
    cases=BATCHES.narrowed(m=(2,), lead=("2d",)),
    dtypes=("float32",),
    needs=CUSTOM,
    library=LIBRARIES,
    weight=0.08,
)
def test_two_clients(subject: Subject, case: RemoteCase) -> float | None:
    batches = [batch(dataclasses.replace(case, seed=2 * case.seed + i), subject.device) for i in (0, 1)]
    with Wire(server_of(subject).port) as wire:
        clients = [layers(subject, wire.address) for _ in batches]
        expected = [both(client, "disable", *given) for client, given in zip(clients, batches, strict=True)]
        found: list[list[Any]] = [[], []]
        meeting = threading.Barrier(len(clients), timeout=PATIENCE)

        def use(i: int) -> None:
            try:
                for _ in range(ROUNDS):
                    meeting.wait()
                    leaf = batches[i][0].clone().requires_grad_(True)
                    y = clients[i](leaf, fhe="remote")
                    y.backward(batches[i][1])
                    found[i].append((y.detach(), leaf.grad))
            except BaseException as error:  # noqa: BLE001  (raised again in the main thread)
                found[i].append(error)
                meeting.abort()

        threads = [threading.Thread(target=use, args=(i,), daemon=True) for i in range(len(clients))]
        with calling_quietly("the model with fhe='remote', used by two clients at once"):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            errors = [e for each in found for e in each if isinstance(e, BaseException)]
            broken = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
            if errors:
                raise (broken or errors)[0]
        for i, name in enumerate(("the first", "the second")):
            require(len(found[i]) == ROUNDS, f"{name} of two clients had no result after {PATIENCE:g} s")
            for pair in found[i]:
                same(pair, expected[i], f" for {name} of two clients")
    return None
