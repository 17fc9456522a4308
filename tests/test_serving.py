"""A server's start and stop: the models it serves, the folders it refuses, and the keys it keeps."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conformance import cli
from reference.service.client import RemoteClient, RemoteError
from reference.service.protocol import Limits
from tests.support.served_models import BACKEND, PLAIN, TAMED, WEIGHTS, Client, save_models
from tests.support.server import PATIENCE, PlainBackend, TamedBackend, save_model, serving, until


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("server"))


def test_a_server_stops_gracefully_and_clients_continue_after_a_restart(models: Path, tmp_path: Path) -> None:
    """A stopping server finishes running requests and refuses new ones; a client uploads its key to the next server."""
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


def _refuses(address: str) -> bool:
    try:
        RemoteClient(address).health()
    except RemoteError as error:
        assert "cannot connect" in str(error) or "connection broke" in str(error)  # noqa: PT017
        return True
    return False


def test_a_product_that_takes_too_long_is_cancelled(models: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from reference.service.worker import TooLongError, Workers

    monkeypatch.setenv("TAMED", str(tmp_path))
    keys, q = BACKEND.keygen(), torch.arange(7).reshape(1, 7)
    job = ("one", "fc.forward_module", "k", keys.evaluation, BACKEND.encrypt(q, keys))
    workers = Workers(models, TamedBackend, 1, Limits(evaluation_seconds=PATIENCE))
    try:
        assert workers.evaluate(*job)
        (tmp_path / "hold").touch()
        workers.seconds = 0.3
        with pytest.raises(TooLongError, match=r"longer than 0\.3 s and was given up"):
            workers.evaluate(*job)
    finally:
        workers.close()


def test_the_least_recently_used_keys_are_dropped_first_and_keys_in_use_never() -> None:
    from starlette.exceptions import HTTPException

    from reference.service.key_store import KeyStore

    keys = KeyStore(Limits(keys=3, keys_bytes=100))
    for name in "abc":
        keys.add(name, bytes(30), name)
    with keys.in_use("a"), keys.in_use("a"):
        pass
    keys.add("d", bytes(30), "d")
    assert list(keys.held) == ["c", "a", "d"]
    with keys.in_use("c"), keys.in_use("d"):
        keys.add("e", bytes(40), "e")
        assert list(keys.held) == ["c", "d", "e"]
        keys.add("f", bytes(40), "f")
        assert list(keys.held) == ["c", "d", "f"]
        with pytest.raises(HTTPException, match="no room for another evaluation key"):
            keys.add("g", bytes(41), "g")
        assert list(keys.held) == ["c", "d", "f"]
    assert not keys.users
    keys.add("h", bytes(100), "h")
    assert list(keys.held) == ["h"]


def test_a_client_that_uploads_many_keys_drops_its_own() -> None:
    from starlette.exceptions import HTTPException

    from reference.service.key_store import KeyStore

    keys = KeyStore(Limits(keys=4, client_keys=2))
    keys.add("mine", b"1", "me")
    for number in range(16):
        keys.add(f"{number}", b"1", "another")
    assert list(keys.held) == ["mine", "14", "15"]
    for number in range(16):
        keys.add(f"{number} of a third", b"1", "a third")
    assert "mine" in keys
    with keys.in_use("14 of a third"), keys.in_use("15 of a third"), pytest.raises(HTTPException, match="of a third"):
        keys.add("more", b"1", "a third")
    assert "more" not in keys


def _about(folder: Path, **changes: Any) -> None:
    path = folder / "one" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _arrays(folder: Path, **arrays: Any) -> None:
    np.savez(folder / "one" / "0.npz", **arrays)


def _cut(folder: Path) -> None:
    path = folder / "one" / "0.npz"
    path.write_bytes(path.read_bytes()[:-40])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (lambda f: (f / "one" / "model.json").unlink(), "one is not a saved model: model.json is missing"),
    "no arrays": (lambda f: (f / "one" / "0.npz").unlink(), "one is not a saved model: 0.npz is missing"),
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
        "the weight of fc.forward_module is not a matrix of integers",
    ),
    "vector": (lambda f: _arrays(f, weight=np.ones(2, np.int8)), "is not a matrix of integers"),
    "other": (lambda f: _arrays(f, bias=np.ones((2, 2), np.int8)), "is not a matrix of integers"),
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
        (["nowhere", *PLAIN], "nowhere is not a folder: expected one that holds MODEL/model.json"),
        ([".", *PLAIN], " holds no model: expected MODEL/model.json in it"),
        ([".", "--backend", "nowhere:Backend"], "backend 'nowhere:Backend': expected an importable module:name"),
        (
            [".", "--backend", "tests.support.server"],
            "backend 'tests.support.server': expected an importable module:name",
        ),
        ([".", "--host", "256.0.0.1"], "cannot listen on 256.0.0.1 port 0"),
    ],
)
def test_a_usage_error_prints_a_message_and_exits_2(
    options: list[str], says: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["serve", "--port", "0", *options]) == 2
    assert says in capsys.readouterr().err.replace("\n", " ")


def test_a_port_that_is_in_use_is_a_usage_error(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
        assert cli.main(["serve", str(models), *PLAIN, "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in capsys.readouterr().err


def test_a_single_models_folder_is_served_and_an_unfinished_save_is_not(models: Path, tmp_path: Path) -> None:
    from reference.service.worker import load

    assert list(load(models / "one", PlainBackend)) == ["one"]
    save_model(tmp_path / ".three-abc", WEIGHTS["one"])
    save_model(tmp_path / "four", WEIGHTS["two"])
    assert list(load(tmp_path, PlainBackend)) == ["four"]
