"""A server of a saved model, in a separate process for the time of a `with` block."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from conformance.errors import UsageError

START_SECONDS, STOP_SECONDS = 180, 15


class ServerError(UsageError):
    """The server did not start; the message says why."""


@contextmanager
def served(model_dir: Path) -> Iterator[str]:
    """Serve the models of a folder on a free port of this machine while the block runs; yields the address.

    Raises:
        ServerError: if the server does not start.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_serve, args=(theirs, model_dir))
    process.start()
    try:
        theirs.close()
        yield _address(ours)
    finally:
        process.terminate()
        process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _address(connection: Connection) -> str:
    try:
        if connection.poll(START_SECONDS):
            ready, text = connection.recv()
            if ready:
                return str(text)
            raise ServerError(f"the server did not start: {text}")
    except EOFError:
        raise ServerError("the server ended before it listened") from None
    raise ServerError(f"the server did not listen within {START_SECONDS} s")


def _serve(connection: Connection, model_dir: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the demo stops the server
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        from reference.service.server import serve

        serve(model_dir, port=0, grace=1.0, ready=lambda address, _: connection.send((True, address)))
    except Exception as error:  # noqa: BLE001  (the demo raises it as its own error)
        connection.send((False, f"{type(error).__name__}: {error}"))
        raise SystemExit(1) from None


def _end_with_parent() -> None:
    """End this process when the demo ends in any way."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
