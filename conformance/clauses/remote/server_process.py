"""The target's `serve` in a separate process, shared by all clauses; it ends with the process that started it."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from conformance.clauses.remote.wire import HOST
from conformance.judgement.outcomes import Violation
from conformance.target.calls import calling

PATIENCE = 120.0  # seconds for a server to listen; only a failure waits so long
ATTEMPTS = 3  # another process may take a free port before the server does
# The server's stdin closes when the process that started it ends, in whatever way; the server then kills itself.
LAUNCH = """
import os, pickle, signal, sys, threading

def follow():
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)

sys.path[:], model_dir, host, port, serve = pickle.load(sys.stdin.buffer)
threading.Thread(target=follow, daemon=True).start()
pickle.loads(serve)(model_dir, host, port)
"""
RUNNING: dict[tuple[bytes, str], Server] = {}
MOST = 2  # servers that run at the same time


class Server:
    """A running server.

    Args:
        serve: the target's function, pickled.   folder: its subfolder `server` holds the saved models.
    Raises:
        Violation: if the server does not listen.
    """

    def __init__(self, serve: bytes, folder: Any) -> None:
        self.folder = folder
        self.log = Path(folder.name) / "log"
        for attempt in range(ATTEMPTS):
            self.port = _free_port()
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", LAUNCH],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            assert self.process.stdin is not None
            given = sys.path, str(Path(folder.name) / "server"), HOST, self.port, serve
            with contextlib.suppress(BrokenPipeError):  # the process has ended; its log says why
                self.process.stdin.write(pickle.dumps(given))
                self.process.stdin.flush()
            try:
                self._await_listening()
                return
            except Violation:
                self._end()
                if attempt == ATTEMPTS - 1:
                    folder.cleanup()
                    raise
            except BaseException:
                self.stop()
                raise

    def _await_listening(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1.0):
                return
            if time.monotonic() > deadline:
                raise Violation(f"serve(model_dir, host, port) does not listen after {PATIENCE:g} s{self.said()}")
            time.sleep(0.02)
        raise Violation(f"serve(model_dir, host, port) ended with {self.process.returncode}{self.said()}")

    def said(self) -> str:
        """The last lines of the server's output."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "".join(f"\n         {line[:300]}" for line in lines[-3:])

    def stop(self) -> None:
        """End the server and all processes that it started, and remove the folder that it served."""
        self._end()
        self.folder.cleanup()

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


def served(serve: Any, folder: Any) -> Server:
    """A server of the models saved in a folder, or a running one that serves the same files.

    Args:
        folder: a `tempfile.TemporaryDirectory` that lives as long as the server.
    """
    with calling("pickling serve, to call it in a process of its own"):
        pickled = pickle.dumps(serve)
    key = pickled, _digest(Path(folder.name) / "server")
    running = RUNNING.pop(key, None)
    if running is not None and running.process.poll() is None:
        folder.cleanup()
    else:
        if running is not None:
            running.stop()
        while len(RUNNING) >= MOST:
            RUNNING.pop(next(iter(RUNNING))).stop()
        running = Server(pickled, folder)
        atexit.register(stop_all)
    RUNNING[key] = running  # last in order, because it was used last
    return running


def stop_all() -> None:
    """End every server."""
    while RUNNING:
        RUNNING.popitem()[1].stop()


def scratch() -> Any:
    """A temporary folder for saved models."""
    return tempfile.TemporaryDirectory(prefix="loraspec-", ignore_cleanup_errors=True)


def _digest(folder: Path) -> str:
    """A digest of the names and contents of all files."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return found.hexdigest()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port
