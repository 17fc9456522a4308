"""Answers of a server that does not follow the protocol, and servers of another model: an error, never a result."""

from __future__ import annotations

import math

import torch

from conformance.cases.case import Space
from conformance.clauses.fhe.key_pairs import known_keys
from conformance.clauses.fhe.split_model import run
from conformance.clauses.remote.clients import (
    CUSTOM,
    LIBRARIES,
    RemoteCase,
    batch,
    both,
    layers,
    same,
    server_of,
    weights,
)
from conformance.clauses.remote.forging_relay import ENDLESS, ForgingRelay
from conformance.clauses.remote.wire import Wire
from conformance.judgement.outcomes import require
from conformance.numerics.formats import Array
from conformance.specification.clause import clause
from conformance.target.expected_errors import refuses
from conformance.target.subject import Subject

FEATURE = "answer_check"
TAKEN = 16 * 2**20  # bytes: many times what a result here has, and what sockets hold back


@clause(
    "REM-ANSWER",
    sentence="""In mode remote an answer to an earlier input, one that was cut off or is longer, and one with a changed
    bit are errors. With right answers the same client then works again.""",
    why="Whoever answers in place of the server would otherwise decide what the client learns.",
    cases=Space(RemoteCase, m=(2, 3), how=("stale", "cut off", "longer", "changed")),
    dtypes=("float32",),
    needs=CUSTOM,
    library=LIBRARIES,
    feature=FEATURE,
    weight=0.34,
)
def test_forged_answers_are_errors(subject: Subject, case: RemoteCase) -> float | None:
    x, g = batch(case, subject.device)
    server = server_of(subject)
    with ForgingRelay(server.port) as relay:
        hybrid = layers(subject, relay.address)
        with known_keys(server, hybrid):
            run(hybrid, "remote", x.flip(-1))  # its answer is the stale one
            expected = both(hybrid, "disable", x, g)
            relay.how = case.how
            refuses(
                f"mode remote, with an answer that is {case.how},", lambda: hybrid(x, fhe="remote"), types=(Exception,)
            )
            relay.how = ""
            same(both(hybrid, "remote", x, g), expected, " after a forged answer")
    return None


@clause(
    "REM-ANSWER-SIZE",
    sentence="""A client knows the size of a result and reads hardly more: an endless answer is an error before 16 MiB
    of it were taken.""",
    why="A server could otherwise fill the client's memory.",
    cases=Space(RemoteCase, m=(2, 3)),
    dtypes=("float32",),
    needs=CUSTOM,
    library=LIBRARIES,
    feature=FEATURE,
    weight=0.08,
)
def test_endless_answers_are_errors(subject: Subject, case: RemoteCase) -> float | None:
    x, _ = batch(case, subject.device)
    server = server_of(subject)
    with ForgingRelay(server.port) as relay:
        hybrid = layers(subject, relay.address)
        with known_keys(server, hybrid):
            run(hybrid, "remote", x)
            relay.how = "endless"
            refuses("mode remote, with an endless answer,", lambda: hybrid(x, fhe="remote"), types=(Exception,))
    end = ", all that came" if relay.took >= ENDLESS else ""
    require(
        relay.took < TAKEN, f"the client took {relay.took} bytes of an endless answer{end}: expected {TAKEN} at most"
    )
    return None


def changed_weights() -> dict[str, Array]:
    """The weights with one element changed so far that its integer differs, within the range of its row and column."""
    found = weights()
    row = found["two"][0]
    order = row.argsort()
    row[order[len(row) // 2]] = math.fsum((row[order[0]], row[order[1]])) / 2
    return found


@clause(
    "REM-OTHER-MODEL",
    sentence="""A server that has another model under the same name, of the same shapes, is an error in mode remote,
    even if one integer differs, and before an input is sent.""",
    why="A client of an old version of the weights would otherwise train on products that mean nothing.",
    cases=Space(RemoteCase, m=(2, 3)),
    dtypes=("float32",),
    needs=CUSTOM,
    library=LIBRARIES,
    feature=FEATURE,
    weight=0.17,
)
def test_another_model_is_an_error(subject: Subject, case: RemoteCase) -> float | None:
    x, _ = batch(case, subject.device)
    server = server_of(subject)
    with Wire(server.port) as wire:
        honest, other = layers(subject, wire.address), layers(subject, wire.address, changed_weights())
        with known_keys(server, honest):
            expected = run(honest, "disable", x)
            require(torch.equal(run(honest, "remote", x), expected), "y of mode remote differs from mode disable")
        before = wire.sent_bytes()
        require(torch.equal(run(honest, "remote", x), expected), "y of mode remote differs from mode disable")
        right = wire.sent_bytes() - before
        with known_keys(server, other):
            refuses("mode remote, at a server of another model,", lambda: other(x, fhe="remote"), types=(Exception,))
        sent = wire.sent_bytes() - before - right
    require(2 * sent < right, f"{sent} bytes were sent to a server of another model, where a call sends {right}")
    return None
