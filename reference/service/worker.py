"""Processes that evaluate a server's products, so that the server keeps answering and survives their crashes.

An encryption library may block all other threads for seconds, or end its process at unexpected bytes.
"""

import multiprocessing
import queue
import signal
import threading
from collections import OrderedDict
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch import Tensor

from ..encrypted.answer_check import weight_digest
from ..encrypted.backends import MakeBackend, parameters_from
from ..encrypted.encryption import EncryptionError
from . import deployment

KEYS_AT_HAND = 2  # evaluation keys that one process keeps; the server keeps all of them


class RefusedError(Exception):
    """The backend refuses these bytes; the message gives the reason."""


class EvaluationError(Exception):
    """The product could not be evaluated, and the fault is the server's."""


class TooLongError(EvaluationError):
    """The product took too long."""


class Model:
    """One saved model at the server: integer weights by module name, and a backend for its parameters.

    Raises:
        ValueError: naming a folder that is missing or damaged.   ImportError: without the backend's library.
    """

    def __init__(self, folder: Path, make_backend: MakeBackend) -> None:
        self.weights: dict[str, Tensor]
        self.weights, numbers = deployment.load_server(folder)
        try:
            self.parameters = parameters_from(numbers)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder} is damaged: its parameters: {error}") from error
        self.backend = make_backend(self.parameters)

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each module's integers, by which a client knows the model."""
        return {name: weight_digest(weight) for name, weight in self.weights.items()}


def load(model_dir: Path, make_backend: MakeBackend) -> dict[str, Model]:
    """The models in a folder by name; the folder may itself be one model.

    Raises:
        ValueError: naming the folder, if it holds no model or a damaged one.   ImportError: as in `Model`.
    """
    if not model_dir.is_dir():
        raise ValueError(f"{model_dir} is not a folder: expected one that holds MODEL/model.json")
    folders = [model_dir.resolve()]
    if not (model_dir / "model.json").exists():
        # A name that begins with a dot is an unfinished model.
        folders = sorted(entry for entry in model_dir.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise ValueError(f"{model_dir} holds no model: expected MODEL/model.json in it")
    return {folder.name: Model(folder, make_backend) for folder in folders}


class Workers:
    """Processes that evaluate one product at a time each; they start at once, and again after a crash.

    Args:
        model_dir, make_backend: as in `load`.   number: the number of processes.   seconds: the limit for one product.
    """

    def __init__(self, model_dir: Path, make_backend: MakeBackend, number: int, seconds: float) -> None:
        self.seconds = seconds
        self._start_with = model_dir, make_backend
        self._closed = threading.Event()
        self._every = [_Worker(self._start_with) for _ in range(number)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._every:
            worker.start()
            self._idle.put(worker)

    def evaluate(self, model: str, module: str, key_name: str, key: bytes, ciphertext: bytes) -> bytes:
        """The encrypted result; the call waits for a free process.

        Raises:
            RefusedError, EvaluationError, TooLongError.
        """
        worker = self._idle.get()
        try:
            if self._closed.is_set():
                raise EvaluationError("the server has stopped")
            return worker.evaluate((model, module, key_name, ciphertext), key, self.seconds)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Kill all processes."""
        self._closed.set()
        for worker in self._every:
            worker.stop()


class _Worker:
    def __init__(self, start_with: tuple[Path, MakeBackend]) -> None:
        self.start_with = start_with
        self.process: Any = None
        self.connection: Connection | None = None

    def start(self) -> None:
        spawn = multiprocessing.get_context("spawn")  # a process forked from one with threads may hang
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_work, args=(theirs, *self.start_with), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def evaluate(self, job: tuple[str, str, str, bytes], key: bytes, seconds: float) -> bytes:
        if not self.process.is_alive():
            self.start()
        assert self.connection is not None
        try:
            self.connection.send(job)
            said, what = self._answer(seconds)
            if said == "key":
                self.connection.send_bytes(key)
                said, what = self._answer(seconds)
        except (EOFError, OSError):
            self.process.join(5)  # let it end by itself, so that its exit code shows the cause
            self.stop()
            raise EvaluationError(f"the process that evaluates ended with exit code {self.process.exitcode}") from None
        if said == "refused":
            raise RefusedError(what)
        if said == "failed":
            raise EvaluationError(what)
        return what  # type: ignore[no-any-return]

    def _answer(self, seconds: float) -> tuple[str, Any]:
        assert self.connection is not None
        if not self.connection.poll(seconds):
            self.stop()
            raise TooLongError(f"the product took longer than {seconds:g} s and was given up")
        return self.connection.recv()  # type: ignore[no-any-return]


def _work(connection: Connection, model_dir: Path, make_backend: MakeBackend) -> None:
    """The main function of a process: evaluate jobs until the server closes the connection."""
    for name in (signal.SIGINT, signal.SIGTERM):  # they may reach the whole process group; only the server decides
        signal.signal(name, signal.SIG_IGN)
    models = load(model_dir, make_backend)
    keys: OrderedDict[str, bytes] = OrderedDict()
    with suppress(EOFError, OSError):  # the server has ended
        while True:
            model, module, key_name, ciphertext = connection.recv()
            if key_name not in keys:
                connection.send(("key", None))
                keys[key_name] = connection.recv_bytes()
                if len(keys) > KEYS_AT_HAND:
                    keys.popitem(last=False)
            keys.move_to_end(key_name)
            connection.send(_evaluated(models[model], module, ciphertext, keys[key_name]))


def _evaluated(model: Model, module: str, ciphertext: bytes, key: bytes) -> tuple[str, Any]:
    try:
        return "result", model.backend.evaluate(ciphertext, model.weights[module], key)
    except (EncryptionError, ValueError) as error:
        return "refused", str(error)[:400]
    except BaseException as error:  # noqa: BLE001  (a panic is no Exception; nothing else is raised here)
        return "failed", f"the backend stopped with {type(error).__name__}"  # the text of the error may hold secrets
