"""The client of a server: a split model runs remotely, and each fault of a server raises a clear error."""

from __future__ import annotations

import copy
import pickle
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reference.service.client import RemoteClient, RemoteError
from reference.split_model import HybridFHEModel
from tests.support.commands import python
from tests.support.served_models import Client
from tests.support.server import PlainBackend, answering, serving


def test_a_split_model_runs_remotely(tmp_path: Path) -> None:
    """With real encryption, the server's results equal the unencrypted integer results."""
    pytest.importorskip("concrete_ml_extensions")
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


def test_a_server_that_is_down_is_an_error_within_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    began = time.monotonic()
    said = Client(address).refusal()
    assert said.startswith(f"evaluate one/fc.forward_module at {address}: cannot connect (")
    assert said.endswith("expected a running `loraspec serve` (tried 4 times)")
    assert time.monotonic() - began < 10
    with pytest.raises(RemoteError, match=r"health of http://127.*cannot connect"):
        RemoteClient(address).health()


def test_a_client_waits_twice_as_long_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("reference.service.exchange.time.sleep", waits.append)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    assert Client(address, retries=4).refusal().endswith("(tried 5 times)")
    assert waits == [waits[0] * 2**attempt for attempt in range(4)]
    assert waits[0] > 0


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
        (_says(OURS % (302, 0)), "refused with 302: 0 bytes that are not a JSON error"),
        (_says(OURS % (404, 2) + b"[]"), "refused with 404: 2 bytes that are not a JSON error"),
    ],
)
def test_bad_answers_of_a_server_are_errors(answer: Callable[[socket.socket], object], says: str) -> None:
    with answering(answer) as address:
        client = Client(address, 1.0, retries=0)
        said = client.refusal()
        client.remote.close()
    assert said.startswith(f"evaluate one/fc.forward_module at {address}: ")
    assert says in said


def split_at(address: str, **options: Any) -> tuple[HybridFHEModel, torch.Tensor]:
    """A compiled model with one remote layer, and its calibration inputs."""
    backend: Any = PlainBackend()
    split = HybridFHEModel(torch.nn.Sequential(torch.nn.Linear(6, 4)), ["0"], address, backend=backend, **options)
    x = torch.linspace(-1, 1, 12).reshape(2, 6)
    split.compile_model(x)
    return split, x


def test_a_split_model_honours_its_timeout() -> None:
    with answering(_silent) as address:
        split, x = split_at(address, timeout=0.5)
        with pytest.raises(RemoteError, match=r"health of .*: no answer within 0\.5 s: expected one"):
            split(x, fhe="remote")
        split._split.client.close()


def test_a_split_model_refuses_an_invalid_timeout() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 4))
    for timeout in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"timeout = {timeout}: expected a positive number of seconds"):
            HybridFHEModel(model, ["0"], "http://127.0.0.1:9", timeout=timeout)
    assert isinstance(model[0], torch.nn.Linear)


@pytest.mark.parametrize("address", ["", "localhost:8000", "ftp://here", "http://", "http://here/?q=1"])
def test_an_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected http://host:port"):
        RemoteClient(address)


def test_a_password_in_an_address_is_not_shown() -> None:
    client = RemoteClient("http://me:PLANTED@127.0.0.1:1/")
    assert "PLANTED" not in repr(client) + Client("http://me:PLANTED@127.0.0.1:1").refusal()
    with pytest.raises(ValueError, match="address") as caught:
        RemoteClient("ftp://me:PLANTED@here")
    assert "PLANTED" not in str(caught.value)


def test_a_client_can_be_copied_and_pickled_and_refuses_invalid_timeouts() -> None:
    client = RemoteClient("http://127.0.0.1:1", 7.0)
    for twin in (copy.deepcopy(client), pickle.loads(pickle.dumps(client))):
        assert (twin.address, twin.timeout) == (client.address, 7.0)
    for timeout in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="timeout = "):
            RemoteClient("http://127.0.0.1:1", timeout)


def test_the_remote_extra_is_needed_only_when_used(tmp_path: Path) -> None:
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
