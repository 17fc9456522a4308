"""A server in its own process: its answers, and the requests it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from reference.encrypted.answer_check import weight_digest
from reference.encrypted.noise import TOY
from reference.service.client import RemoteClient, RemoteError
from tests.support.served_models import A_KEY, BACKEND, EVALUATE, MODELS, WEIGHTS, Client, http
from tests.support.server import Server, exchange, until


def test_health_lists_the_served_models(server: Server) -> None:
    found = RemoteClient(server.address).health()
    assert found["status"] == "ok"
    assert found["models"] == {
        name: {
            "parameters": TOY.name,
            "secure": False,
            "modules": sorted(modules),
            "digests": {module: weight_digest(WEIGHTS[name][module]) for module in modules},
        }
        for name, modules in MODELS.items()
    }


def test_several_clients_models_and_modules_work_at_once(server: Server) -> None:
    clients = [Client(server.address) for _ in range(4)]  # more than the limit of simultaneous uploads
    jobs = [(c, model, module) for _ in range(4) for c in clients for model in MODELS for module in MODELS[model]]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda job: job[0].is_right(*job[1:]), jobs))
    assert [client.uploads(server) for client in clients] == [1] * 4


def test_a_key_is_uploaded_once(server: Server) -> None:
    client = Client(server.address)
    assert client.is_right()
    assert client.is_right()
    assert client.uploads(server) == 1


def test_each_request_has_one_log_line_without_its_contents(server: Server) -> None:
    client = Client(server.address)
    ciphertext = BACKEND.encrypt(client.inputs(), client.keys)
    result = client.remote.evaluate("one", "fc.forward_module", ciphertext, client.keys.evaluation)
    key, lines = hashlib.sha256(client.keys.evaluation).hexdigest(), server.logged()
    assert any(f"PUT /keys/{key[:8]}… 204" in line for line in lines)
    line = next(line for line in lines if " 200 " in line and f"{len(ciphertext)} bytes in" in line)
    assert "POST /evaluate?model=one&module=fc.forward_module 200 " in line
    assert line.rstrip().endswith(f"{len(ciphertext)} bytes in, {len(result)} out")
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
        ({"ciphertext": b""}, "422: 0 bytes came that are not a ciphertext"),
        ({"ciphertext": os.urandom(500)}, "422: 500 bytes came that are not a ciphertext"),
        ({"evaluation": b""}, "422: an evaluation key came with invalid contents"),
        ({"evaluation": os.urandom(4000)}, "422: an evaluation key came with invalid contents"),
        ({"ciphertext": bytes(2**20 + 1)}, "413: a ciphertext of more than 1048576 bytes: expected at most that"),
        ({"evaluation": bytes(2**20 + 1)}, "413: an evaluation key of more than 1048576 bytes"),
    ],
)
def test_a_refusal_states_the_reason_and_the_address(server: Server, changes: dict[str, Any], says: str) -> None:
    said = Client(server.address).refusal(**changes)
    assert f" {server.address}: refused with {says}" in said


def test_a_truncated_ciphertext_is_refused(server: Server) -> None:
    client = Client(server.address)
    ciphertext = BACKEND.encrypt(client.inputs(), client.keys)
    for length in (10, len(ciphertext) - 1):
        said = client.refusal(ciphertext=ciphertext[:length])
        assert "refused with 422: " in said
        assert str(length) in said


def test_another_clients_key_is_refused(server: Server) -> None:
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


def test_a_request_that_is_not_http_is_refused(server: Server) -> None:
    assert exchange(server.port, os.urandom(2000) + b"\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    with suppress(ConnectionError):  # the server may close before everything is sent
        assert exchange(server.port, b"GET / HTTP/1.1\r\nX: " + b"x" * 2**20).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("pieces", [5, 1000])
def test_an_oversize_chunked_body_is_refused(server: Server, pieces: int) -> None:
    name = hashlib.sha256(b"").hexdigest()
    body = b"".join(b"40000\r\n" + bytes(0x40000) + b"\r\n" for _ in range(5)) + b"0\r\n\r\n"
    if pieces == 1000:  # much more than the server reads: it may close before everything is sent
        body = body[:-5] * 20
    request = http(f"/keys/{name}", "Transfer-Encoding: chunked", "Connection: close", method="PUT", body=body)
    try:
        came = exchange(server.port, request)
    except ConnectionError:
        assert pieces == 1000
    else:
        assert came.startswith(b"HTTP/1.1 413 ")


def test_a_body_of_another_length_than_announced_is_refused(server: Server) -> None:
    key = b"EVAL" + os.urandom(32)
    path = f"/keys/{hashlib.sha256(key).hexdigest()}"
    said = exchange(server.port, http(path, "Content-Length: 20", "Connection: close", method="PUT", body=key))
    assert said.startswith(b"HTTP/1.1 422 ")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(http(path, "Content-Length: 999", method="PUT", body=key))
    until(lambda: any(f"{path[:14]}… 499 " in line for line in server.log), "the broken upload in the log")
    with pytest.raises(RemoteError, match="unknown model"):  # the broken upload did not register the key
        RemoteClient(server.address).evaluate("x", "y", b"", key)
