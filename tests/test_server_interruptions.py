"""A server in its own process: slow, waiting and killed clients, and evaluations that die or panic."""

from __future__ import annotations

import hashlib
import http.client as http_client
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from reference.service.client import RemoteClient
from reference.service.protocol import Limits
from tests.support.served_models import BACKEND, EVALUATE, STALL, Client, http
from tests.support.server import PATIENCE, Server, exchange, until


def test_slow_clients_are_disconnected(server: Server) -> None:
    """A client that stalls before a request, in a first or second head or in a body is disconnected in time."""
    key = b"EVAL" + os.urandom(4000)
    body = http(f"/keys/{hashlib.sha256(key).hexdigest()}", "Content-Length: 4004", method="PUT", body=key[:99])
    head = b"GET /health HTTP/1.1\r\n"
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        sent = [b"", head, body, http("/health", method="GET") + head]
        came = list(pool.map(lambda request: exchange(server.port, request), sent))
    assert time.monotonic() - began >= STALL
    assert came[:2] == [b"", b""]
    assert came[2].startswith(b"HTTP/1.1 408 ")
    assert b"an evaluation key came too slowly, 99 bytes of it: expected the next piece within 4 s" in came[2]
    assert came[3].count(b"HTTP/1.1 200 ") == 1


def test_a_client_that_goes_on_asking_keeps_its_connection(server: Server) -> None:
    connection = http_client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.connect()
    connection.auto_open = 0  # else a closed connection would be opened again
    began = time.monotonic()
    while time.monotonic() - began < STALL + 1:
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        time.sleep(0.5)
    connection.close()


def test_key_uploads_wait_for_a_free_slot(server: Server) -> None:
    client = Client(server.address)
    slow = http(f"/keys/{'1' * 64}", "Content-Length: 99", method="PUT", body=b"EVAL")
    assert Client(server.address).is_right()
    began = time.monotonic()
    with ExitStack() as stack:
        for _ in range(Limits().uploads):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(slow)
        server.logged()  # by now the slow uploads hold every slot, until they time out
        assert client.is_right()
        assert time.monotonic() - began > 0.9 * STALL


def test_a_client_that_does_not_read_its_answer_is_disconnected(server: Server) -> None:
    client = Client(server.address)
    assert client.is_right()
    # the answer has 20 MB, more than any socket buffer holds
    body = BACKEND.encrypt(client.inputs("two", "wide", 40000), client.keys)
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
print("sent", flush=True)
connection.recv(1)
"""


def test_the_server_survives_clients_killed_midrequest(server: Server, tame: Path) -> None:
    client = Client(server.address)
    assert client.is_right()
    body = BACKEND.encrypt(client.inputs(), client.keys)
    key = f"Evaluation-Key: {hashlib.sha256(client.keys.evaluation).hexdigest()}"
    request = http(EVALUATE, key, f"Content-Length: {len(body)}", body=body)
    gone = sum(" 499 " in line for line in server.logged())
    (tame / "hold").touch()
    # killed while its request is evaluated, while it waits, while it is being sent
    for number, sent in ((1, request), (2, request), (1, request[:-20])):
        command = [sys.executable, "-c", KILLED, str(server.port), sent.hex()]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as killed:
            assert killed.stdout is not None
            assert killed.stdout.readline() == b"sent\n"
            server.logged()
            until(partial(_has_requests, server, number), "the request")
            until((tame / "holding").exists, "the evaluation")
            killed.kill()
        if number == 2:  # it leaves the queue, although the process is not free
            until(partial(_has_requests, server, 1), "the end of the waiting request")
    (tame / "hold").unlink()
    until(partial(_has_requests, server, 0), "the end of all")
    until(lambda: sum(" 499 " in line for line in server.logged()) == gone + 2, "two broken requests in the log")
    assert client.is_right()


def _has_requests(server: Server, number: int) -> bool:
    return bool(RemoteClient(server.address).health()["requests"] == number)


def test_a_client_times_out_and_the_server_goes_on(server: Server, tame: Path) -> None:
    client, hasty = Client(server.address), Client(server.address, 0.5)
    assert hasty.remote.health()
    (tame / "hold").touch()
    said = hasty.refusal()
    assert said.startswith((f"evaluate one/fc.forward_module at {server.address}: no answer within 0.5 s", "upload"))
    (tame / "hold").unlink()
    assert client.is_right()


def test_an_evaluation_that_kills_its_process_is_an_error_500(server: Server, tame: Path) -> None:
    client = Client(server.address)
    (tame / "die").touch()
    assert "refused with 500: the process that evaluates ended with exit code -9" in client.refusal()
    assert client.is_right()


def test_a_panic_in_an_evaluation_leaks_no_values(server: Server, tame: Path) -> None:
    (tame / "panic").touch()
    said = Client(server.address).refusal()
    assert said.endswith("refused with 500: the backend stopped with Panic")
    assert "PLANTED" not in "".join(server.log)
