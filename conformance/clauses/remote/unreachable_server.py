"""A server that cannot be reached: a timely error that names its address, and recovery when it is back."""

from __future__ import annotations

import threading
from typing import Any

from conformance.cases.case import Space
from conformance.clauses.remote.clients import CUSTOM, LIBRARIES, RemoteCase, batch, both, reconnected, same
from conformance.judgement.outcomes import Violation, require
from conformance.specification.clause import clause
from conformance.target.expected_errors import quiet
from conformance.target.subject import Subject

BOUND = 20.0  # seconds until an error: many times what a busy machine needs to encrypt, yet not endless


@clause(
    "REM-DOWN",
    sentence="""If the server refuses or closes connections, a call in mode remote raises an error within 20 s that
    names the server's address. The error is a RemoteError if the target has that class. Once the server is back, mode
    remote works again.""",
    cases=Space(RemoteCase, m=(2,), how=("refused", "closed")),
    dtypes=("float32",),
    needs=CUSTOM,
    library=LIBRARIES,
    weight=0.34,
)
def test_server_down(subject: Subject, case: RemoteCase) -> float | None:
    x, g = batch(case, subject.device)
    with reconnected(subject) as (wire, hybrid):
        expected = both(hybrid, "disable", x, g)
        same(both(hybrid, "remote", x, g), expected)
        wire.down(case.how)
        what = "mode remote, with a server that " + {"refused": "is down", "closed": "closes connections"}[case.how]
        error = _outcome(what, lambda: hybrid(x, fhe="remote"))
        where, raised = wire.address.removeprefix("http://"), f"{what}, raised {type(error).__name__}: {_first(error)}"
        require(where in str(error), f"{raised}: it does not name {where}")
        kind = getattr(subject.target, "RemoteError", Exception)
        require(isinstance(error, kind), f"{raised}: expected RemoteError")
        wire.up()
        same(both(hybrid, "remote", x, g), expected, " after the server was down")
    return None


def _outcome(what: str, call: Any) -> Exception:
    """The Exception that a call raises, which it must do in time."""
    came: list[Any] = []

    def run() -> None:
        try:
            came.append(call())
        except BaseException as error:  # noqa: BLE001  (judged below)
            came.append(error)

    thread = threading.Thread(target=run, daemon=True)
    with quiet():
        thread.start()
        thread.join(BOUND)
    require(bool(came), f"{what}, does not end within {BOUND:g} s: expected an error")
    if not isinstance(came[0], BaseException):
        raise Violation(f"{what}, returned {type(came[0]).__name__}: expected an error")
    if not isinstance(came[0], Exception):
        raise Violation(f"{what}, raised {type(came[0]).__name__}: expected an Exception")
    return came[0]


def _first(error: Exception) -> str:
    return (str(error).splitlines() or ["(no message)"])[0][:300]
