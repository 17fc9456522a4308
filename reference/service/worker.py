"""Processes that evaluate a server's products, so that the server keeps answering and survives their crashes.

An encryption library may block all other threads for seconds, or end its process at unexpected bytes.
"""

import multiprocessing
import queue
import signal
import threading
import time
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
from .protocol import Limits

CANCEL = "cancel"
LOOK = 0.1  # seconds after which a running product's cancellation is looked for again
KEYS_AT_HAND = 2  # evaluation keys that one process keeps; the server keeps all of them


class RefusedError(Exception):
    """The backend refuses these bytes; the message gives the reason."""


class EvaluationError(Exception):
    """The product could not be evaluated, and the fault is the server's."""


class CancelledError(EvaluationError):
    """The product was cancelled, because its client has gone or its time is over."""


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
        model_dir, make_backend: as in `load`.   number: the number of processes.
        limits: of the time of one product, and of the memory of a process.
    """

    def __init__(self, model_dir: Path, make_backend: MakeBackend, number: int, limits: Limits) -> None:
        self.seconds = limits.evaluation_seconds
        self._start_with = model_dir, make_backend, limits.worker_bytes
        self._closed = threading.Event()
        self._every = [_Worker(self._start_with) for _ in range(number)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._every:
            worker.start()
            self._idle.put(worker)

    def evaluate(
        self,
        model: str,
        module: str,
        key_name: str,
        key: bytes,
        ciphertext: bytes,
        cancelled: threading.Event | None = None,
    ) -> bytes:
        """The encrypted result; the call waits for a free process.

        Args:
            cancelled: an event that ends the product at its next row, or None.
        Raises:
            RefusedError, EvaluationError, TooLongError, CancelledError.
        """
        worker = self._idle.get()
        try:
            if self._closed.is_set():
                raise EvaluationError("the server has stopped")
            job = model, module, key_name, ciphertext
            return worker.evaluate(job, key, self.seconds, cancelled or threading.Event())
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Kill all processes."""
        self._closed.set()
        for worker in self._every:
            worker.stop()


class _Worker:
    def __init__(self, start_with: tuple[Path, MakeBackend, int | None]) -> None:
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

    def evaluate(
        self, job: tuple[str, str, str, bytes], key: bytes, seconds: float, cancelled: threading.Event
    ) -> bytes:
        if not self.process.is_alive():
            self.start()
        assert self.connection is not None
        try:
            self.connection.send(job)
            said, what = self._answer(seconds, cancelled)
            if said == "key":
                self.connection.send_bytes(key)
                said, what = self._answer(seconds, cancelled)
        except (EOFError, OSError):
            self.process.join(5)  # let it end by itself, so that its exit code shows the cause
            self.stop()
            raise EvaluationError(f"the process that evaluates ended with exit code {self.process.exitcode}") from None
        if said == "refused":
            raise RefusedError(what)
        if said == CANCEL:
            raise CancelledError("the product was cancelled")
        if said == "failed":
            raise EvaluationError(what)
        return what  # type: ignore[no-any-return]

    def _answer(self, seconds: float, cancelled: threading.Event) -> tuple[str, Any]:
        assert self.connection is not None
        deadline, told = time.monotonic() + seconds, False
        while not self.connection.poll(min(LOOK, seconds)):
            if cancelled.is_set() and not told:
                self.connection.send(CANCEL)
                told = True
            if time.monotonic() > deadline:
                self.stop()
                raise TooLongError(f"the product took longer than {seconds:g} s and was given up")
        return self.connection.recv()  # type: ignore[no-any-return]


def _work(connection: Connection, model_dir: Path, make_backend: MakeBackend, memory: int | None) -> None:
    """The main function of a process: evaluate jobs until the server closes the connection."""
    for name in (signal.SIGINT, signal.SIGTERM):  # they may reach the whole process group; only the server decides
        signal.signal(name, signal.SIG_IGN)
    models = load(model_dir, make_backend)
    if memory is not None:
        _limit_memory(memory)
    keys: OrderedDict[str, bytes] = OrderedDict()
    with suppress(EOFError, OSError):  # the server has ended
        while True:
            job = connection.recv()
            if job == CANCEL:  # it came when the product had already ended
                continue
            model, module, key_name, ciphertext = job
            if key_name not in keys:
                connection.send(("key", None))
                keys[key_name] = connection.recv_bytes()
                if len(keys) > KEYS_AT_HAND:
                    keys.popitem(last=False)
            keys.move_to_end(key_name)
            connection.send(_evaluated(connection, models[model], module, ciphertext, keys[key_name]))


def _limit_memory(beyond: int) -> None:
    """Limit the address space to its present size and so many bytes more; Linux alone tells the size."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):
        return
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + beyond,) * 2)


def _evaluated(connection: Connection, model: Model, module: str, ciphertext: bytes, key: bytes) -> tuple[str, Any]:
    def look(done: int, rows: int) -> None:  # noqa: ARG001
        if connection.poll():
            connection.recv()
            raise _CancelledProductError

    try:
        return "result", model.backend.evaluate(ciphertext, model.weights[module], key, progress=look)
    except _CancelledProductError:
        return CANCEL, None
    except (EncryptionError, ValueError) as error:
        return "refused", str(error)[:400]
    except MemoryError:
        return "failed", "the product needs more memory than a process may take (worker_bytes)"
    except BaseException as error:  # noqa: BLE001  (a panic is no Exception; nothing else is raised here)
        return "failed", f"the backend stopped with {type(error).__name__}"  # the text of the error may hold secrets


class _CancelledProductError(Exception):
    """The server asked to end the product."""
