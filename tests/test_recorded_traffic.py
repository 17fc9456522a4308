"""The search of recorded traffic finds a planted number in each form, and finds nothing in random bytes."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading

import numpy as np
import pytest
import torch

from conformance.clauses.fhe.leak_search import numbers_found, searchable, secret_found
from conformance.clauses.fhe.oracle import by_row
from conformance.clauses.remote.wire import Wire

VALUES = np.random.default_rng(5).standard_normal((3, 8)).astype(np.float32).astype(np.float64)
ROW = by_row(VALUES, 8).values[1]
SECRET = np.random.default_rng(6).integers(0, 2, 512).astype("<u8").tobytes()


def _floats(dtype: torch.dtype) -> bytes:
    return torch.from_numpy(VALUES).to(dtype).view(torch.uint8).numpy().tobytes()


FORMS = {
    **{str(dtype): _floats(dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)},
    **{f"a row as {kind}": ROW.astype(kind).tobytes() for kind in ("<i8", "<i4", "<i2", "u1")},
    "a signed row": (ROW - 128).astype("i1").tobytes(),
    "a column": by_row(VALUES.repeat(3, 0).T, 8).values[2].astype("u1").tobytes(),
    "JSON": json.dumps(VALUES.tolist()).encode(),
    "a tensor in words": str(torch.from_numpy(VALUES)).encode(),
    "a row in words": str(ROW.tolist()).encode(),
    "base64": base64.b64encode(_floats(torch.float32)),
    "base64 for addresses": base64.urlsafe_b64encode(b"?" + _floats(torch.bfloat16)),
    "base64 in lines": base64.encodebytes(_floats(torch.float64)),
    "hexadecimal digits": b"x" + _floats(torch.float16).hex().encode(),
    "capital digits": _floats(torch.float32).hex().upper().encode(),
}


def _crossed(body: bytes) -> bytes:
    """The searchable traffic after a client sends a body between random bytes through the wire."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def take() -> None:
            connection, _ = listening.accept()
            with connection:
                while connection.recv(2**16):
                    pass

        server = threading.Thread(target=take, daemon=True)
        server.start()
        with Wire(listening.getsockname()[1]) as wire, socket.create_connection(("127.0.0.1", wire.port)) as client:
            client.sendall(os.urandom(5000) + b"\r\n" + body + b"\r\n" + os.urandom(5000))
            client.shutdown(socket.SHUT_WR)
            server.join(60)
            assert wire.sent_bytes() == 10004 + len(body)
            return searchable(wire.traffic())


@pytest.mark.parametrize("form", FORMS)
def test_planted_values_are_found_in_every_form(form: str) -> None:
    values = VALUES.repeat(3, 0) if form == "a column" else VALUES
    assert list(numbers_found(_crossed(FORMS[form]), {"x": values}, 8)) == ["x"]


@pytest.mark.parametrize("sent", [SECRET, base64.b64encode(SECRET), SECRET.hex().encode()], ids=len)
def test_a_secret_key_is_found(sent: bytes) -> None:
    assert secret_found(_crossed(sent), SECRET)


def test_nothing_is_found_in_random_bytes() -> None:
    text = searchable([os.urandom(2**21), base64.b64encode(os.urandom(2**12)), b"\0" * 2**16])
    assert not numbers_found(text, {"x": VALUES}, 8)
    assert not secret_found(text, SECRET)
