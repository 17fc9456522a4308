"""A server in a process of its own: what it answers, and each fault that a client may put before it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reference.noise import TOY
from reference.remote import Limits, RemoteClient, RemoteError
from tests.support.served_models import A_KEY, BACKEND, EVALUATE, MODELS, TAMED, Client, http, save_models
from tests.support.server import PATIENCE, Server, exchange, serving, until

STALL = 4.0  # seconds that the shared server grants a client that sends nothing


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def shared(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """One server for all tests that leave it running, with the folder that tames its backend."""
    folder = tmp_path_factory.mktemp("tamed")
    limits = ("--max-request", "1", "--max-key", "1", "--stall", str(STALL))
    with serving(models, *TAMED, *limits, TAMED=str(folder)) as server:
        yield server, folder
        server.stop(signal.SIGINT)
        code, said = server.ended()
        assert code == 0, said
        assert "Traceback" not in said


@pytest.fixture
def server(shared: tuple[Server, Path]) -> Iterator[Server]:
    """The shared server, which must answer rightly after each test."""
    yield shared[0]
    for name in ("hold", "holding", "die", "panic"):
        (shared[1] / name).unlink(missing_ok=True)
    assert shared[0].process.poll() is None, "the server has ended"
    assert Client(shared[0].address).is_right()


@pytest.fixture
def tame(shared: tuple[Server, Path]) -> Path:
    return shared[1]


def test_health_says_what_is_served(server: Server) -> None:
    found = RemoteClient(server.address).health()
    assert found["status"] == "ok"
    assert found["models"] == {
        name: {"parameters": TOY.name, "secure": False, "modules": sorted(modules)} for name, modules in MODELS.items()
    }


def test_several_clients_models_and_modules_at_once(server: Server) -> None:
    clients = [Client(server.address) for _ in range(4)]  # more than may upload at once
    jobs = [(c, model, module) for _ in range(4) for c in clients for model in MODELS for module in MODELS[model]]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda job: job[0].is_right(*job[1:]), jobs))
    assert [client.uploads(server) for client in clients] == [1] * 4


def test_a_key_is_uploaded_once(server: Server) -> None:
    client = Client(server.address)
    assert client.is_right()
    assert client.is_right()
    assert client.uploads(server) == 1


def test_one_log_line_per_request_without_its_contents(server: Server) -> None:
    client = Client(server.address)
    ciphertext = BACKEND.encrypt(client.inputs(), client.keys)
    client.remote.evaluate("one", "fc.forward_module", ciphertext, client.keys.evaluation)
    key, lines = hashlib.sha256(client.keys.evaluation).hexdigest(), server.logged()
    assert any(f"PUT /keys/{key[:8]}… 204" in line for line in lines)
    line = next(line for line in lines if " 200 " in line and f"{len(ciphertext)} bytes in" in line)
    assert "POST /evaluate?model=one&module=fc.forward_module 200 " in line
    log = "".join(lines)
    assert key not in log
    assert repr(ciphertext)[2:30] not in log


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_name": "three"}, "404: unknown model 'three': expected one of one, two"),
        ({"model_name": "../one"}, "404: unknown model '../one'"),
        ({"module_name": "fc"}, "404: one has no module 'fc': expected one of fc.backward_module, fc.forward_module"),
        ({"module_name": "a/b?c=d&model=two#%00"}, "404: one has no module 'a/b?c=d&model=two#%00'"),
        ({"ciphertext": b""}, "422: 0 bytes came that are no ciphertext"),
        ({"ciphertext": os.urandom(500)}, "422: 500 bytes came that are no ciphertext"),
        ({"evaluation": b""}, "422: an evaluation key came with contents that are none"),
        ({"evaluation": os.urandom(4000)}, "422: an evaluation key came with contents that are none"),
        ({"ciphertext": bytes(2**20 + 1)}, "413: a ciphertext of more than 1048576 bytes: expected at most that"),
        ({"evaluation": bytes(2**20 + 1)}, "413: an evaluation key of more than 1048576 bytes"),
    ],
)
def test_a_refusal_says_why_and_where(server: Server, changes: dict[str, Any], says: str) -> None:
    said = Client(server.address).refusal(**changes)
    assert f" {server.address}: refused with {says}" in said


def test_a_ciphertext_that_was_cut_off(server: Server) -> None:
    client = Client(server.address)
    ciphertext = BACKEND.encrypt(client.inputs(), client.keys)
    for length in (10, len(ciphertext) - 1):
        said = client.refusal(ciphertext=ciphertext[:length])
        assert "refused with 422: " in said
        assert str(length) in said


def test_another_clients_key_does_not_fit(server: Server) -> None:
    mine, other = Client(server.address), Client(server.address)
    assert mine.is_right()
    assert other.is_right()
    assert "422: a ciphertext came under other keys: use the same pair" in mine.refusal(
        evaluation=other.keys.evaluation
    )
    q = mine.inputs()
    result = mine.remote.evaluate("one", "fc.forward_module", BACKEND.encrypt(q, mine.keys), mine.keys.evaluation)
    with pytest.raises(RuntimeError, match="under other keys"):
        BACKEND.decrypt(result, 3, 5, other.keys)


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        (http("/evaluate"), 400, "0 query parameters 'model' came: expected one"),
        (http(EVALUATE + "&model=two"), 400, "2 query parameters 'model' came"),
        (http(EVALUATE), 400, "the header Evaluation-Key names no evaluation key"),
        (http(EVALUATE, A_KEY.replace("0", "Z")), 400, "expected its SHA-256 as 64 hexadecimal digits"),
        (http(EVALUATE, A_KEY), 428, "this evaluation key is not here: upload it first"),
        (http("/keys/12", method="PUT"), 400, "the path names no evaluation key"),
        (http("/keys/" + "0" * 64, "Content-Length: 3", method="PUT", body=b"abc"), 422, "another hash"),
        (http("/keys/" + "0" * 64, f"Content-Length: {2**50}", method="PUT"), 413, "more than 1048576 bytes"),
        (http("/keys/" + "0" * 64, method="GET"), 405, "Method Not Allowed"),
        (http("/", method="GET"), 404, "Not Found"),
        (http("/../../etc/passwd", method="GET"), 404, "Not Found"),
    ],
)
def test_a_malformed_request_is_an_error_in_json(server: Server, request_: bytes, status: int, says: str) -> None:
    head, _, body = exchange(server.port, request_.replace(b"Host", b"Connection: close\r\nHost", 1)).partition(
        b"\r\n\r\n"
    )
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert says in json.loads(body)["error"]


def test_what_is_no_http_is_refused(server: Server) -> None:
    assert exchange(server.port, os.urandom(2000) + b"\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    with suppress(ConnectionError):  # it may close before all has been sent
        assert exchange(server.port, b"GET / HTTP/1.1\r\nX: " + b"x" * 2**20).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("pieces", [5, 1000])
def test_an_oversize_body_of_no_announced_length(server: Server, pieces: int) -> None:
    name = hashlib.sha256(b"").hexdigest()
    body = b"".join(b"40000\r\n" + bytes(0x40000) + b"\r\n" for _ in range(5)) + b"0\r\n\r\n"
    if pieces == 1000:  # much more than is read: the server may close before all has been sent
        body = body[:-5] * 20
    request = http(f"/keys/{name}", "Transfer-Encoding: chunked", "Connection: close", method="PUT", body=body)
    try:
        came = exchange(server.port, request)
    except ConnectionError:
        assert pieces == 1000
    else:
        assert came.startswith(b"HTTP/1.1 413 ")


def test_a_body_of_another_length_than_announced(server: Server) -> None:
    key = b"EVAL" + os.urandom(32)
    path = f"/keys/{hashlib.sha256(key).hexdigest()}"
    said = exchange(server.port, http(path, "Content-Length: 20", "Connection: close", method="PUT", body=key))
    assert said.startswith(b"HTTP/1.1 422 ")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(http(path, "Content-Length: 999", method="PUT", body=key))
    until(lambda: any(f"{path[:14]}… 499 " in line for line in server.log), "the broken upload in the log")
    with pytest.raises(RemoteError, match="unknown model"):  # and the key did not come to be known
        RemoteClient(server.address).evaluate("x", "y", b"", key)


def test_slow_clients_are_given_up(server: Server) -> None:
    """One sends nothing, one half a head, one half a body; all are told or closed, in about the time granted."""
    key = b"EVAL" + os.urandom(4000)
    body = http(f"/keys/{hashlib.sha256(key).hexdigest()}", "Content-Length: 4004", method="PUT", body=key[:99])
    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        came = list(pool.map(lambda request: exchange(server.port, request), [b"", b"GET /health HTTP/1.1\r\n", body]))
    assert time.monotonic() - began >= STALL
    assert came[:2] == [b"", b""]
    assert came[2].startswith(b"HTTP/1.1 408 ")
    assert b"an evaluation key came too slowly, 99 bytes of it: expected the next piece within 4 s" in came[2]


def test_keys_wait_for_their_turn_to_arrive(server: Server) -> None:
    client = Client(server.address)
    slow = http(f"/keys/{'1' * 64}", "Content-Length: 99", method="PUT", body=b"EVAL")
    assert Client(server.address).is_right()
    began = time.monotonic()
    with ExitStack() as stack:
        for _ in range(Limits().uploads):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(slow)
        server.logged()  # by now those are being taken, until they are given up
        assert client.is_right()
        assert time.monotonic() - began > 0.9 * STALL


def test_an_answer_that_is_not_read_is_given_up(server: Server) -> None:
    client = Client(server.address)
    assert client.is_right()
    body = BACKEND.encrypt(client.inputs("two", "wide", 40000), client.keys)  # to 20 MB, more than any buffer takes
    key = f"Evaluation-Key: {hashlib.sha256(client.keys.evaluation).hexdigest()}"
    request = http("/evaluate?model=two&module=wide", key, f"Content-Length: {len(body)}", body=body)
    before = server.sockets()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request)
        until(lambda: any(f" {len(body)} bytes in" in line for line in server.log), "the answer")
        held = server.sockets() - before
        assert held
        until(lambda: not held & server.sockets(), "the end of the connection")


def test_health_answers_while_a_product_is_evaluated(server: Server, tame: Path) -> None:
    client = Client(server.address)
    (tame / "hold").touch()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.is_right)
        until((tame / "holding").exists, "the evaluation")
        assert RemoteClient(server.address).health()["requests"] == 1
        assert not running.done()
        (tame / "hold").unlink()
        assert running.result(PATIENCE)


KILLED = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(bytes.fromhex(sys.argv[2]))
connection.recv(1)
"""


def test_a_client_killed_midrequest(server: Server, tame: Path) -> None:
    client = Client(server.address)
    assert client.is_right()
    body = BACKEND.encrypt(client.inputs(), client.keys)
    key = f"Evaluation-Key: {hashlib.sha256(client.keys.evaluation).hexdigest()}"
    request = http(EVALUATE, key, f"Content-Length: {len(body)}", body=body)
    gone = sum(" 499 " in line for line in server.logged())
    (tame / "hold").touch()
    for number, sent in (
        (1, request),
        (2, request),
        (3, request[:-20]),
    ):  # while evaluated; while waiting; while sending
        with subprocess.Popen([sys.executable, "-c", KILLED, str(server.port), sent.hex()]) as killed:
            until(partial(_has_requests, server, number), "the request")
            until((tame / "holding").exists, "the evaluation")
            killed.kill()
    (tame / "hold").unlink()
    until(partial(_has_requests, server, 0), "the end of all")
    assert sum(" 499 " in line for line in server.logged()) == gone + 2  # what waited was not evaluated
    assert client.is_right()


def _has_requests(server: Server, number: int) -> bool:
    return bool(RemoteClient(server.address).health()["requests"] == number)


def test_a_client_that_does_not_wait(server: Server, tame: Path) -> None:
    client, hasty = Client(server.address), Client(server.address, 0.5)
    assert hasty.remote.health()
    (tame / "hold").touch()
    said = hasty.refusal()
    assert said.startswith((f"evaluate one/fc.forward_module at {server.address}: no answer within 0.5 s", "upload"))
    (tame / "hold").unlink()
    assert client.is_right()


def test_an_evaluation_that_ends_its_process(server: Server, tame: Path) -> None:
    client = Client(server.address)
    (tame / "die").touch()
    assert "refused with 500: the process that evaluates ended with exit code -9" in client.refusal()
    assert client.is_right()


def test_an_evaluation_that_panics_tells_no_values(server: Server, tame: Path) -> None:
    (tame / "panic").touch()
    said = Client(server.address).refusal()
    assert said.endswith("refused with 500: the backend stopped with Panic")
    assert "PLANTED" not in "".join(server.log)
