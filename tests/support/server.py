"""A server in a separate process, models for it, and a fast backend that is not secure."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reference.encrypted.encryption import EncryptionError, Keys
from reference.encrypted.noise import TOY, EncryptionParameters

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds until a test gives up; only failing tests wait this long

_HEAD = struct.Struct("<4s32sQQ")  # magic, key id, rows, columns


class PlainBackend:
    """A stand-in for encryption: it masks inputs and results with a key that the evaluation key reveals."""

    def __init__(self, parameters: EncryptionParameters = TOY) -> None:
        self.parameters = parameters

    def keygen(self) -> Keys:
        secret = os.urandom(32)
        return Keys(secret, _evaluation(secret))

    def encrypt(self, q: torch.Tensor, keys: Keys, *, progress: Any = None) -> bytes:
        return _sealed(b"IN01", q, keys.evaluation)

    def evaluate(self, ciphertext: bytes, weight: torch.Tensor, evaluation: bytes, *, progress: Any = None) -> bytes:
        q = _opened(b"IN01", ciphertext, evaluation)
        if q.shape[1] != weight.shape[1]:
            raise ValueError(f"the ciphertext has {q.shape[1]} features: expected {weight.shape[1]}")
        return _sealed(b"OUT1", q @ weight.t(), evaluation)

    def decrypt(self, result: bytes, rows: int, columns: int, keys: Keys, *, progress: Any = None) -> torch.Tensor:
        return _opened(b"OUT1", result, keys.evaluation)


class TamedBackend(PlainBackend):
    """A backend controlled by files in the folder $TAMED.

    `hold` makes it wait, `rows` makes it finish row after row, `die` kills it, `panic` raises, `memory` takes 2 GB.
    """

    def evaluate(self, ciphertext: bytes, weight: torch.Tensor, evaluation: bytes, *, progress: Any = None) -> bytes:
        folder = Path(os.environ["TAMED"])
        if (folder / "hold").exists():
            (folder / "holding").touch()
            until(lambda: not (folder / "hold").exists(), "the file `hold` to go")
        while (folder / "rows").exists():
            (folder / "row").touch()
            progress(1, 2)
            time.sleep(0.01)
        if (folder / "memory").exists():
            (folder / "memory").unlink()
            bytearray(2**31)
        if (folder / "die").exists():
            (folder / "die").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if (folder / "panic").exists():
            raise Panic("PLANTED-VALUE")
        return super().evaluate(ciphertext, weight, evaluation)


class Panic(BaseException):
    """An exception that is no `Exception`, like the panics of Rust libraries."""


class Server:
    """A `loraspec serve` process on a free port, with its address and its log."""

    def __init__(self, models: Path, *options: str, port: int = 0, **environment: str) -> None:
        command = [sys.executable, "-m", "conformance", "serve", str(models), "--port", str(port), *options]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.log: list[str] = []
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
        self._reader.start()
        line = lines.get(timeout=PATIENCE)
        while line and not line.startswith("serving "):  # warnings come before
            line = lines.get(timeout=PATIENCE)
        assert line.startswith("serving "), line + self.ended()[1]
        self.address = line.split()[-1]
        self.port = int(self.address.rpartition(":")[2])

    def _read(self, lines: queue.SimpleQueue[str]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            lines.put(line)
        lines.put("")

    def stop(self, number: int) -> None:
        """Send a signal to all of its processes, as a terminal or an init system does."""
        os.killpg(self.process.pid, number)

    def logged(self) -> list[str]:
        """Return the log lines of all requests answered so far."""
        mark = f"/{time.monotonic_ns()}"
        exchange(self.port, f"GET {mark} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
        until(lambda: any(mark in line for line in self.log), "a marker request in the log")
        return list(self.log)

    def sockets(self) -> set[str]:
        """Return the sockets that the process has open."""
        held = set()
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                held.add(os.readlink(entry))
        return {name for name in held if name.startswith("socket:")}

    def ended(self) -> tuple[int, str]:
        """Wait for the end of the process; return its exit code and its output."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code, "".join(self.log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self._reader.join(PATIENCE)
        self.process.stdout.close()


@contextmanager
def serving(models: Path, *options: str, **environment: Any) -> Iterator[Server]:
    """Run a server and kill it at the end of the block."""
    server = Server(models, *options, **environment)
    try:
        yield server
    finally:
        server.kill()


def save_model(folder: Path, weights: dict[str, torch.Tensor], parameters: EncryptionParameters = TOY) -> None:
    """Write the server's part of a model in the format of `deployment.save`."""
    folder.mkdir(parents=True)
    files = {}
    for number, (name, weight) in enumerate(weights.items()):
        files[name] = f"{number}.npz"
        np.savez(folder / files[name], weight=weight.numpy().astype(np.int8))
    about = {"format": 1, "model": folder.name, "modules": files, "parameters": asdict(parameters)}
    (folder / "model.json").write_text(json.dumps(about))


def until(happened: Callable[[], Any], what: str) -> Any:
    """Wait until a condition returns a true value, and return the value."""
    deadline = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        time.sleep(0.01)
    return found


def exchange(port: int, request: bytes) -> bytes:
    """Send bytes to a local port; return all bytes received until the other end closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(request)
        came = b""
        while piece := connection.recv(65536):
            came += piece
        return came


@contextmanager
def answering(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Listen on a free port, pass the first connection to `answer`, and yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)

        def take() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(PATIENCE)
                answer(connection)

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(PATIENCE)


def _evaluation(secret: bytes) -> bytes:
    return b"EVAL" + hashlib.sha256(secret).digest() + b"\0" * 4096


def _mask(key: bytes, kind: bytes, number: int) -> np.ndarray[Any, Any]:
    seed = int.from_bytes(hashlib.sha256(kind + key).digest()[:8], "little")
    return np.random.default_rng(seed).integers(-(2**40), 2**40, number)


def _sealed(kind: bytes, q: torch.Tensor, key: bytes) -> bytes:
    values = q.numpy().reshape(-1) + _mask(key, kind, q.numel())
    return _HEAD.pack(kind, hashlib.sha256(key).digest(), *q.shape) + values.astype("<i8").tobytes()


def _opened(kind: bytes, sealed: bytes, key: bytes) -> torch.Tensor:
    if not key.startswith(b"EVAL"):
        raise EncryptionError("an evaluation key came with invalid contents")
    if len(sealed) < _HEAD.size or sealed[:4] != kind:
        raise EncryptionError(f"{len(sealed)} bytes came that are not a ciphertext")
    _, whose, rows, columns = _HEAD.unpack_from(sealed)
    if len(sealed) != _HEAD.size + 8 * rows * columns:
        raise EncryptionError(f"a ciphertext came as {len(sealed)} bytes: it was cut off")
    if whose != hashlib.sha256(key).digest():
        raise EncryptionError("a ciphertext came under other keys: use the same pair")
    values = np.frombuffer(sealed, "<i8", offset=_HEAD.size) - _mask(key, kind, rows * columns)
    return torch.from_numpy(values.reshape(rows, columns).copy())
