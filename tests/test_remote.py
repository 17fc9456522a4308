"""Client and server over loopback as separate processes, and each fault that either of them may meet."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conformance import cli
from reference import deployment
from reference.noise import TOY
from reference.quantization import QuantizedLinear
from reference.remote import Limits, RemoteClient, RemoteError
from tests.commands import python
from tests.serving import PATIENCE, PlainBackend, Server, TamedBackend, answering, exchange, save_model, serving, until

PLAIN = ("--backend", "tests.serving:PlainBackend")
TAMED = ("--backend", "tests.serving:TamedBackend")
STALL = 4.0  # seconds that the shared server grants a client that sends nothing

generator = torch.Generator().manual_seed(7)
MODELS = {
    "one": {"fc.forward_module": (5, 7), "fc.backward_module": (7, 5)},
    "two": {"fc.forward_module": (3, 7), "wide": (64, 2)},
}
WEIGHTS = {
    model: {name: torch.randint(-128, 128, shape, generator=generator) for name, shape in modules.items()}
    for model, modules in MODELS.items()
}
BACKEND = PlainBackend()


class Client:
    """A client with keys of its own."""

    def __init__(self, address: str, timeout: float = PATIENCE) -> None:
        self.remote, self.keys = RemoteClient(address, timeout), BACKEND.keygen()

    def inputs(self, model: str = "one", module: str = "fc.forward_module", rows: int = 3) -> Tensor:
        return torch.randint(0, 256, (rows, MODELS[model][module][1]))

    def product(self, q: Tensor, model: str = "one", module: str = "fc.forward_module") -> Tensor:
        result = self.remote.evaluate(model, module, BACKEND.encrypt(q, self.keys), self.keys.evaluation)
        return BACKEND.decrypt(result, len(q), len(WEIGHTS[model][module]), self.keys)

    def is_right(self, model: str = "one", module: str = "fc.forward_module") -> bool:
        q = self.inputs(model, module)
        return torch.equal(self.product(q, model, module), q @ WEIGHTS[model][module].t())

    def uploads(self, server: Server) -> int:
        """How often its key was uploaded."""
        name = hashlib.sha256(self.keys.evaluation).hexdigest()[:8]
        return sum(f"PUT /keys/{name}" in line for line in server.logged())

    def refusal(self, **changes: Any) -> str:
        """What the error says if a request is changed so."""
        given = {
            "model_name": "one",
            "module_name": "fc.forward_module",
            "ciphertext": BACKEND.encrypt(self.inputs(), self.keys),
            "evaluation": self.keys.evaluation,
        }
        with pytest.raises(RemoteError) as caught:
            self.remote.evaluate(**given | changes)
        return str(caught.value)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server")
    for name, weights in WEIGHTS.items():
        save_model(folder / name, weights)
    return folder


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


def _request(path: str, *headers: str, method: str = "POST", body: bytes = b"") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: here", *headers, "", ""]).encode() + body


EVALUATE = "/evaluate?model=one&module=fc.forward_module"
A_KEY = "Evaluation-Key: " + "0" * 64


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        (_request("/evaluate"), 400, "0 query parameters 'model' came: expected one"),
        (_request(EVALUATE + "&model=two"), 400, "2 query parameters 'model' came"),
        (_request(EVALUATE), 400, "the header Evaluation-Key names no evaluation key"),
        (_request(EVALUATE, A_KEY.replace("0", "Z")), 400, "expected its SHA-256 as 64 hexadecimal digits"),
        (_request(EVALUATE, A_KEY), 428, "this evaluation key is not here: upload it first"),
        (_request("/keys/12", method="PUT"), 400, "the path names no evaluation key"),
        (_request("/keys/" + "0" * 64, "Content-Length: 3", method="PUT", body=b"abc"), 422, "another hash"),
        (_request("/keys/" + "0" * 64, f"Content-Length: {2**50}", method="PUT"), 413, "more than 1048576 bytes"),
        (_request("/keys/" + "0" * 64, method="GET"), 405, "Method Not Allowed"),
        (_request("/", method="GET"), 404, "Not Found"),
        (_request("/../../etc/passwd", method="GET"), 404, "Not Found"),
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
    request = _request(f"/keys/{name}", "Transfer-Encoding: chunked", "Connection: close", method="PUT", body=body)
    try:
        came = exchange(server.port, request)
    except ConnectionError:
        assert pieces == 1000
    else:
        assert came.startswith(b"HTTP/1.1 413 ")


def test_a_body_of_another_length_than_announced(server: Server) -> None:
    key = b"EVAL" + os.urandom(32)
    path = f"/keys/{hashlib.sha256(key).hexdigest()}"
    said = exchange(server.port, _request(path, "Content-Length: 20", "Connection: close", method="PUT", body=key))
    assert said.startswith(b"HTTP/1.1 422 ")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(_request(path, "Content-Length: 999", method="PUT", body=key))
    until(lambda: any(f"{path[:14]}… 499 " in line for line in server.log), "the broken upload in the log")
    with pytest.raises(RemoteError, match="unknown model"):  # and the key did not come to be known
        RemoteClient(server.address).evaluate("x", "y", b"", key)


def test_slow_clients_are_given_up(server: Server) -> None:
    """One sends nothing, one half a head, one half a body; all are told or closed, in about the time granted."""
    key = b"EVAL" + os.urandom(4000)
    body = _request(f"/keys/{hashlib.sha256(key).hexdigest()}", "Content-Length: 4004", method="PUT", body=key[:99])
    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        came = list(pool.map(lambda request: exchange(server.port, request), [b"", b"GET /health HTTP/1.1\r\n", body]))
    assert time.monotonic() - began >= STALL
    assert came[:2] == [b"", b""]
    assert came[2].startswith(b"HTTP/1.1 408 ")
    assert b"an evaluation key came too slowly, 99 bytes of it: expected the next piece within 4 s" in came[2]


def test_keys_wait_for_their_turn_to_arrive(server: Server) -> None:
    client = Client(server.address)
    slow = _request(f"/keys/{'1' * 64}", "Content-Length: 99", method="PUT", body=b"EVAL")
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
    request = _request("/evaluate?model=two&module=wide", key, f"Content-Length: {len(body)}", body=body)
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


def test_a_client_killed_mid_request(server: Server, tame: Path) -> None:
    client = Client(server.address)
    assert client.is_right()
    body = BACKEND.encrypt(client.inputs(), client.keys)
    key = f"Evaluation-Key: {hashlib.sha256(client.keys.evaluation).hexdigest()}"
    request = _request(EVALUATE, key, f"Content-Length: {len(body)}", body=body)
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


def test_graceful_stop_then_restart(models: Path, tmp_path: Path) -> None:
    """What runs is finished, what is new refused; a client goes on with the next server, which lacks its key."""
    (tmp_path / "hold").touch()
    with serving(models, *TAMED, TAMED=str(tmp_path)) as first, ThreadPoolExecutor(1) as pool:
        client = Client(first.address)
        running = pool.submit(client.is_right)
        until((tmp_path / "holding").exists, "the evaluation")
        first.stop(signal.SIGTERM)
        until(lambda: _refuses(first.address), "the end of new requests")
        assert first.process.poll() is None
        (tmp_path / "hold").unlink()
        assert running.result(PATIENCE)
        code, said = first.ended()
        assert code == 0, said
        assert "Traceback" not in said
    assert "cannot connect" in client.refusal()
    with serving(models, *PLAIN, port=first.port) as second:
        assert client.is_right()
        until(lambda: sum(" 428 " in line or " 204 " in line for line in second.log) == 2, "a new upload")


def test_a_split_model_runs_remotely(tmp_path: Path) -> None:
    """With real encryption: the server's results are those of the integers in the clear."""
    pytest.importorskip("concrete_ml_extensions")
    from reference.splitting import HybridFHEModel

    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)), torch.randn(2, 6)
    split = HybridFHEModel(model, ["0", "2"], backend="toy")
    split.compile_model(x, 6)
    expected = split(x, fhe="disable")
    split.save_and_clear_private_info(tmp_path)
    with serving(tmp_path / "server") as server:
        split._split.server = server.address
        with pytest.warns(UserWarning, match="is not secure"):
            assert torch.equal(split(x, fhe="remote"), expected)
        assert split.keys is not None
        damaged = split.keys.evaluation[:-9] + bytes(9)
        ciphertext = split._split.backend.encrypt(torch.zeros(1, 6, dtype=torch.int64), split.keys)
        with pytest.raises(RemoteError, match="refused with 422: an evaluation key came with a wrong checksum"):
            RemoteClient(server.address).evaluate("model", "0", ciphertext, damaged)
        with pytest.raises(RemoteError, match="refused with 422: encrypted inputs came with a wrong checksum"):
            RemoteClient(server.address).evaluate("model", "0", ciphertext[:-1], split.keys.evaluation)


def _refuses(address: str) -> bool:
    try:
        RemoteClient(address).health()
    except RemoteError as error:
        assert "cannot connect" in str(error) or "connection broke" in str(error)  # noqa: PT017
        return True
    return False


def test_a_product_that_takes_too_long_is_given_up(models: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from reference.worker import TooLongError, Workers

    monkeypatch.setenv("TAMED", str(tmp_path))
    keys, q = BACKEND.keygen(), torch.arange(7).reshape(1, 7)
    job = ("one", "fc.forward_module", "k", keys.evaluation, BACKEND.encrypt(q, keys))
    workers = Workers(models, TamedBackend, 1, PATIENCE)
    try:
        assert workers.evaluate(*job)
        (tmp_path / "hold").touch()
        workers.seconds = 0.3
        with pytest.raises(TooLongError, match=r"longer than 0\.3 s and was given up"):
            workers.evaluate(*job)
    finally:
        workers.close()


def test_a_server_that_is_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    began = time.monotonic()
    said = Client(address).refusal()
    assert said.startswith(f"evaluate one/fc.forward_module at {address}: cannot connect (")
    assert said.endswith("expected a running `loraspec serve`")
    assert time.monotonic() - began < 10
    with pytest.raises(RemoteError, match=r"health of http://127.*cannot connect"):
        RemoteClient(address).health()


OURS = b"HTTP/1.1 %d X\r\nLoraspec-Protocol: 1\r\nLocation: http://here/\r\nContent-Length: %d\r\n\r\n"


def _says(answer: bytes) -> Callable[[socket.socket], None]:
    def say(connection: socket.socket) -> None:
        connection.recv(10**6)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        while answer and connection.recv(10**6):
            pass

    return say


def _silent(connection: socket.socket) -> None:
    while connection.recv(10**6):
        pass


def _drip(connection: socket.socket) -> None:
    connection.sendall(OURS % (200, 999999))
    try:
        while True:
            connection.sendall(b"x")
            time.sleep(0.01)
    except OSError:
        return


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (_silent, "no answer within 1 s: expected one; a longer one needs a larger timeout"),
        (_drip, "no answer within 1 s"),
        (_says(b""), "no whole HTTP answer came: Server disconnected"),
        (_says(b"SSH-2.0-OpenSSH_9.6\r\n"), "no whole HTTP answer came: Server disconnected"),
        (_says(b"220 here, ready\r\n\r\n"), "no whole HTTP answer came: illegal status line"),
        (_says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), "status 200 came without the header"),
        (_says(OURS % (200, 9) + b"cut"), "no whole HTTP answer came: peer closed connection"),
        (_says(OURS % (200, 2) + b"hi"), "something unnamed came, expected application/octet-stream"),
        (_says(OURS % (302, 0)), "refused with 302: 0 bytes that are no JSON error"),
        (_says(OURS % (404, 2) + b"[]"), "refused with 404: 2 bytes that are no JSON error"),
    ],
)
def test_a_server_that_is_none(answer: Callable[[socket.socket], object], says: str) -> None:
    with answering(answer) as address:
        client = Client(address, 1.0)
        said = client.refusal()
        client.remote.close()
    assert said.startswith(f"evaluate one/fc.forward_module at {address}: ")
    assert says in said


@pytest.mark.parametrize("address", ["", "localhost:8000", "ftp://here", "http://", "http://here/?q=1"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ValueError, match="expected http://host:port"):
        RemoteClient(address)


def test_a_password_in_an_address_is_not_shown() -> None:
    client = RemoteClient("http://me:PLANTED@127.0.0.1:1/")
    assert "PLANTED" not in repr(client) + Client("http://me:PLANTED@127.0.0.1:1").refusal()
    with pytest.raises(ValueError, match="address") as caught:
        RemoteClient("ftp://me:PLANTED@here")
    assert "PLANTED" not in str(caught.value)


def test_a_client_is_copied_with_its_model() -> None:
    client = RemoteClient("http://127.0.0.1:1", 7.0)
    for twin in (copy.deepcopy(client), pickle.loads(pickle.dumps(client))):
        assert (twin.address, twin.timeout) == (client.address, 7.0)
    for timeout in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="timeout = "):
            RemoteClient("http://127.0.0.1:1", timeout)


def test_the_extra_is_needed_only_in_use(tmp_path: Path) -> None:
    for name in ("httpx", "starlette"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')")
    code = """
import reference, sys
assert not {"httpx", "starlette", "uvicorn"} & set(sys.modules)
for use in (lambda: reference.RemoteClient("http://127.0.0.1:1"), lambda: reference.serve(".")):
    try:
        use()
    except ImportError as error:
        print(error)
"""
    ended = python("-c", code, PYTHONPATH=str(tmp_path))
    assert ended.stdout.splitlines() == [
        "a client of a server needs httpx: pip install 'loraspec[remote]'",
        "a server needs starlette and uvicorn: pip install 'loraspec[remote]'",
    ], ended.stderr


def test_keys_unused_for_longest_go_first_and_never_those_in_use() -> None:
    from starlette.exceptions import HTTPException

    from reference.server import _Keys

    keys = _Keys(Limits(keys=3, keys_bytes=100))
    for name in "abc":
        keys.add(name, bytes(30))
    with keys.in_use("a"), keys.in_use("a"):
        pass
    keys.add("d", bytes(30))
    assert list(keys.held) == ["c", "a", "d"]
    with keys.in_use("c"), keys.in_use("d"):
        keys.add("e", bytes(40))
        assert list(keys.held) == ["c", "d", "e"]
        keys.add("f", bytes(40))
        assert list(keys.held) == ["c", "d", "f"]
        with pytest.raises(HTTPException, match="no room for another evaluation key"):
            keys.add("g", bytes(41))
        assert list(keys.held) == ["c", "d", "f"]
    assert not keys.users
    keys.add("h", bytes(100))
    assert list(keys.held) == ["h"]


def _about(folder: Path, **changes: Any) -> None:
    path = folder / "one" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _arrays(folder: Path, **arrays: Any) -> None:
    np.savez(folder / "one" / "0.npz", **arrays)


def _cut(folder: Path) -> None:
    path = folder / "one" / "0.npz"
    path.write_bytes(path.read_bytes()[:-40])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (lambda f: (f / "one" / "model.json").unlink(), "one is no saved model: model.json is missing"),
    "no arrays": (lambda f: (f / "one" / "0.npz").unlink(), "one is no saved model: 0.npz is missing"),
    "not json": (lambda f: (f / "one" / "model.json").write_text("{"), "one is damaged: JSONDecodeError"),
    "no dict": (lambda f: (f / "one" / "model.json").write_text("[1]"), "one is damaged: TypeError"),
    "bytes": (lambda f: (f / "one" / "model.json").write_bytes(b"\xff\xfe"), "one is damaged: UnicodeDecodeError"),
    "version": (lambda f: _about(f, format=2), "its format is 2, expected 1"),
    "escape": (lambda f: _about(f, modules={"fc": "../two/0.npz"}), "it names the file '../two/0.npz'"),
    "absolute": (lambda f: _about(f, modules={"fc": "/etc/passwd"}), "it names the file '/etc/passwd'"),
    "number": (lambda f: _about(f, modules={"fc": 0}), "one is damaged: TypeError"),
    "no modules": (lambda f: _about(f, modules={}), "model.json names no modules"),
    "parameters": (lambda f: _about(f, parameters=3), "model.json has no parameters"),
    "unknown": (lambda f: _about(f, parameters={"name": "x"}), "one is damaged: its parameters: "),
    "objects": (lambda f: _arrays(f, weight=np.array([[{}]])), "Object arrays cannot be loaded"),
    "floats": (
        lambda f: _arrays(f, weight=np.ones((2, 2))),
        "the weight of fc.forward_module is no matrix of integers",
    ),
    "vector": (lambda f: _arrays(f, weight=np.ones(2, np.int8)), "is no matrix of integers"),
    "other": (lambda f: _arrays(f, bias=np.ones((2, 2), np.int8)), "is no matrix of integers"),
    "cut off": (_cut, "one is damaged: "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_not_served(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    for model in WEIGHTS:
        (tmp_path / "server" / model).mkdir(parents=True)
        for file in (models / model).iterdir():
            (tmp_path / "server" / model / file.name).write_bytes(file.read_bytes())
    do, says = DAMAGES[damage]
    do(tmp_path / "server")
    assert cli.main(["serve", str(tmp_path / "server"), "--port", "0", *PLAIN]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert says in said.err.replace("\n", " ")
    assert said.err.startswith("loraspec: ")
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["nowhere", *PLAIN], "nowhere is no folder: expected one that holds MODEL/model.json"),
        ([".", *PLAIN], " holds no model: expected MODEL/model.json in it"),
        ([".", "--backend", "nowhere:Backend"], "backend 'nowhere:Backend': expected an importable module:name"),
        ([".", "--backend", "tests.serving"], "backend 'tests.serving': expected an importable module:name"),
        ([".", "--host", "256.0.0.1"], "cannot listen on 256.0.0.1 port 0"),
    ],
)
def test_a_mistake_is_one_message_and_exit_2(
    options: list[str], says: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["serve", "--port", "0", *options]) == 2
    assert says in capsys.readouterr().err.replace("\n", " ")


def test_a_port_that_is_taken(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
        assert cli.main(["serve", str(models), *PLAIN, "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in capsys.readouterr().err


def test_one_models_folder_is_served_and_what_was_cut_off_is_not(models: Path, tmp_path: Path) -> None:
    from reference.worker import load

    assert list(load(models / "one", PlainBackend)) == ["one"]
    save_model(tmp_path / ".three-abc", WEIGHTS["one"])
    save_model(tmp_path / "four", WEIGHTS["two"])
    assert list(load(tmp_path, PlainBackend)) == ["four"]


class _Compiled:
    """As much of a `RemoteModule` as saving looks at."""

    def __init__(self) -> None:
        self.quantized = QuantizedLinear(torch.randn(3, 4), torch.randn(3), 8)


def _save(path: Path, name: str = "m") -> None:
    modules: Any = {"fc": _Compiled()}
    deployment.save(path, name, modules, TOY)


def test_a_saved_model_is_complete_or_not_there(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", fail)
        with pytest.raises(OSError, match="no space left"):
            _save(tmp_path)
    assert not list(tmp_path.rglob("*m*"))
    _save(tmp_path)
    assert sorted(p.name for p in (tmp_path / "server" / "m").iterdir()) == ["0.npz", "model.json"]
    with np.load(tmp_path / "server" / "m" / "0.npz") as held:
        assert held.files == ["weight"]
    with pytest.raises(FileExistsError, match="server/m is there already"):
        _save(tmp_path)


CUT_OFF = """
import os, signal, sys, pathlib
import reference.deployment as deployment
from tests.test_remote import _save
deployment.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
_save(pathlib.Path(sys.argv[1]))
"""


def test_a_kill_while_saving_leaves_nothing_that_is_served(tmp_path: Path) -> None:
    from reference.worker import load

    ended = python("-c", CUT_OFF, str(tmp_path), cwd=Path(__file__).parents[1])
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [entry.name[:3] for entry in (tmp_path / "server").iterdir()] == [".m-"]
    with pytest.raises(ValueError, match="holds no model"):
        load(tmp_path / "server", PlainBackend)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/a", "a b", "ä", "a\n", "x" * 101])
def test_a_model_name_that_is_no_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected up to 100 letters"):
        _save(tmp_path, name)
    assert not list(tmp_path.iterdir())
