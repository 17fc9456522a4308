"""Attacks on a server, each with its outcome: others are served, and the server stops when it is told to."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.exceptions import HTTPException

from reference.encrypted.encryption import EncryptionError
from reference.encrypted.seal_backend import SealBackend
from reference.service.client import RemoteClient
from reference.service.protocol import INLINE_KEY_BYTES, Limits
from reference.service.request_names import inline_key
from tests.support.served_models import BACKEND, EVALUATE, PLAIN, STALL, Client, http, save_models
from tests.support.server import PATIENCE, Server, exchange, serving, until


@pytest.mark.parametrize(
    "text", ["=", "=" + base64.b64encode(bytes(INLINE_KEY_BYTES + 1)).decode(), "=no base64", "=A?"]
)
def test_a_header_without_a_key_is_refused(text: str) -> None:
    with pytest.raises(HTTPException, match=f"holds no evaluation key: expected =BASE64 of 1 to {INLINE_KEY_BYTES}"):
        inline_key(text)
    assert inline_key("=" + base64.b64encode(bytes(INLINE_KEY_BYTES)).decode()) == bytes(INLINE_KEY_BYTES)
    assert inline_key("=AA==") == b"\0"


def elsewhere(address: str) -> Client:
    """A client with another address than those of the attacks."""
    return Client(address, transport=httpx.HTTPTransport(local_address="127.0.0.2"))


@contextmanager
def trickling(port: int, number: int, path: str, *lines: str) -> Iterator[list[socket.socket]]:
    """So many requests whose bodies come byte by byte."""
    head = http(path, "Content-Length: 999999", *lines, method="PUT" if path.startswith("/keys") else "POST")
    over = threading.Event()
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(number)]
        for connection in connections:
            connection.sendall(head)

        def trickle() -> None:
            while not over.wait(0.2):
                for connection in connections:
                    with suppress(OSError):
                        connection.send(b"x")

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        try:
            yield connections
        finally:
            over.set()
            thread.join()


def test_trickling_requests_lock_no_one_out(server: Server) -> None:
    mine, other = Client(server.address), elsewhere(server.address)
    assert mine.is_right()
    assert other.is_right()
    key = f"Evaluation-Key: {hashlib.sha256(mine.keys.evaluation).hexdigest()}"
    began = time.monotonic()
    with trickling(server.port, Limits().client_requests, EVALUATE, key) as connections:
        server.logged()
        assert other.is_right()
        assert time.monotonic() - began < STALL
        assert RemoteClient(server.address).health()["requests"] == 0  # none takes a slot before its body is there
        came = b""
        while piece := connections[0].recv(65536):
            came += piece
        assert came.startswith(b"HTTP/1.1 408 ")
        assert b"65536 bytes per second" in came
        assert time.monotonic() - began < STALL + 5


def test_a_client_has_a_quota_of_requests(server: Server) -> None:
    mine, hasty = Client(server.address), Client(server.address, retries=0)
    assert mine.is_right()
    key = f"Evaluation-Key: {hashlib.sha256(mine.keys.evaluation).hexdigest()}"
    with trickling(server.port, Limits().client_requests, EVALUATE, key):
        server.logged()
        said = hasty.refusal(evaluation=mine.keys.evaluation)
        assert "refused with 503: 16 requests of 127.0.0.1 are here" in said
        assert mine.is_right()  # it tries again, until the slow requests are dropped


def test_trickling_uploads_leave_room_for_other_clients(server: Server) -> None:
    with trickling(server.port, 4, f"/keys/{'1' * 64}"):
        server.logged()
        began = time.monotonic()
        assert elsewhere(server.address).is_right()
        assert time.monotonic() - began < STALL


def test_a_product_ends_at_its_next_row_once_its_client_has_gone(server: Server, tame: Path) -> None:
    client, other = Client(server.address), elsewhere(server.address)
    assert client.is_right()
    body = BACKEND.encrypt(client.inputs(), client.keys)
    key = f"Evaluation-Key: {hashlib.sha256(client.keys.evaluation).hexdigest()}"
    (tame / "rows").touch()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(http(EVALUATE, key, f"Content-Length: {len(body)}", body=body))
        until((tame / "row").exists, "the first row")
    until(lambda: RemoteClient(server.address).health()["requests"] == 0, "the end of the abandoned product")
    (tame / "rows").unlink()
    assert other.is_right()
    assert not any("ended with exit code" in line for line in server.log)  # the process went on


def test_a_product_that_needs_too_much_memory_is_an_error(server: Server, tame: Path) -> None:
    (tame / "memory").touch()
    assert "refused with 500: the product needs more memory than a process may take" in Client(server.address).refusal()


def test_a_request_with_two_ends_closes_the_connection(server: Server) -> None:
    twice = http("/health", "Content-Length: 5", "Transfer-Encoding: chunked", method="GET", body=b"0\r\n\r\n")
    came = exchange(server.port, twice + http("/health", "Connection: close", method="GET"))
    assert came.startswith(b"HTTP/1.1 400 ")
    assert b"both Content-Length and Transfer-Encoding came" in came
    assert came.count(b"HTTP/1.1 ") == 1  # what follows is not taken for a request


def test_a_client_has_a_quota_of_connections(tmp_path: Path) -> None:
    with serving(save_models(tmp_path), *PLAIN, "--client-connections", "3") as server, ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(3)]
        with suppress(ConnectionError):
            assert exchange(server.port, http("/health", method="GET")) == b""
        assert elsewhere(server.address).is_right()
        idle[0].close()
        until(lambda: _is_answered(server.port), "a free connection")


def _is_answered(port: int) -> bool:
    with suppress(ConnectionError):
        return bool(exchange(port, http("/health", "Connection: close", method="GET")))
    return False


def test_a_slow_upload_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with serving(save_models(tmp_path), *PLAIN, "--grace", "100") as server:
        with trickling(server.port, 2, f"/keys/{'1' * 64}") as connections:
            server.logged()
            began = time.monotonic()
            server.stop(signal.SIGTERM)
            assert b"503 " in connections[0].recv(65536)
            server.process.wait(PATIENCE)
        assert time.monotonic() - began < 20
        assert server.ended()[0] == 0


def test_a_request_has_a_deadline_and_a_large_enough_rate() -> None:
    from starlette.exceptions import HTTPException

    from reference.service.request_body import check_pace

    limits = Limits(stall_seconds=10, body_seconds=100, least_rate=1000)
    check_pace("a body", 0, 9, 9, limits)
    check_pace("a body", 50_000, 59, 1, limits)
    for size, seconds, silent in ((10**9, 5, 11), (10**9, 101, 1), (48_000, 59, 1)):
        with pytest.raises(HTTPException, match=f"a body came too slowly, {size} bytes of it"):
            check_pace("a body", size, seconds, silent, limits)


def test_bytes_that_are_no_key_are_refused_before_they_take_room() -> None:
    from reference.encrypted.encryption import ConcreteBackend

    backends: list[Any] = [SealBackend(), ConcreteBackend("toy")]
    for backend in backends:
        for sealed in (b"x", os.urandom(4000)):
            with pytest.raises(EncryptionError, match="an evaluation key came"):
                backend.check_evaluation(sealed)


def test_a_limit_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^the limit requests = 0: expected a positive number$"):
        Limits(requests=0)
