"""A server of a saved model, in a separate process for the time of a `with` block."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from conformance.demo.mode_comparison import TLS
from conformance.errors import UsageError
from reference.service.client import RemoteClient

START_SECONDS, STOP_SECONDS = 180, 15


class ServerError(UsageError):
    """The server did not start; the message says why."""


@contextmanager
def served(model_dir: Path, tls: TLS | None = None) -> Iterator[RemoteClient]:
    """Serve the models of a folder on a free port of this machine while the block runs; yields a client with a token.

    Args:
        tls: the files with which both ends speak TLS; None for plain HTTP, which does not leave this machine.
    Raises:
        ServerError: if the server does not start.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    token = secrets.token_urlsafe(24)
    process = spawn.Process(target=_serve, args=(theirs, model_dir, tls, token))
    process.start()
    try:
        theirs.close()
        address = _address(ours)
        with closing(RemoteClient(address, token=token, ca=None if tls is None else tls.authority)) as client:
            yield client
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


def _serve(connection: Connection, model_dir: Path, tls: TLS | None, token: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the demo stops the server
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        from reference.service.server import serve

        serve(
            model_dir,
            port=0,
            grace=1.0,
            ready=lambda address, _: connection.send((True, address)),
            certificate=None if tls is None else tls.certificate,
            private_key=None if tls is None else tls.private_key,
            tokens=[token],
        )
    except Exception as error:  # noqa: BLE001  (the demo raises it as its own error)
        connection.send((False, f"{type(error).__name__}: {error}"))
        raise SystemExit(1) from None


def _end_with_parent() -> None:
    """End this process when the demo ends in any way."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
