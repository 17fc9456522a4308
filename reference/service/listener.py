"""The listening server: its socket, its connections, and the signals that stop it."""

import signal
import socket
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from ..encrypted.backends import MakeBackend
from .access import is_local
from .application import Application, application
from .connection import Connection
from .encrypted_transport import ServerTLS
from .protocol import Limits

KEEP_ALIVE = 30  # seconds without a request; clients close earlier, so that no request meets a closing connection


def run(
    model_dir: Path,
    host: str,
    port: int,
    backend: MakeBackend,
    workers: int,
    limits: Limits,
    grace: float,
    ready: Callable[[str, list[str]], object] | None,
    tls: ServerTLS | None = None,
    tokens: Collection[str] = (),
) -> None:
    """See `server.serve`."""
    for name, value, least in (("workers", workers, 1), ("grace", grace, 0), ("port", port, 0)):
        if value < least:
            raise ValueError(f"{name} = {value}: expected at least {least}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=128)
    with listening, _closing(application(model_dir, backend, workers, limits, tokens)) as app:
        warn_of_exposure(host, has_tls=tls is not None, has_tokens=bool(app.tokens))
        for name, why in app.insecure.items():
            warnings.warn(f"{name}: {why}: use it only in tests", stacklevel=4)
        config = uvicorn.Config(
            app,
            http=type("Connection", (Connection,), {"limits": limits, "clients": Counter()}),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.connections,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(grace)),
            **({} if tls is None else tls.options()),
        )
        server = uvicorn.Server(config)
        app.stopping = lambda: server.should_exit
        with _stopped_by_signals(server):
            if ready is not None:
                shown = f"[{host}]" if ":" in host else host
                ready(f"{'http' if tls is None else 'https'}://{shown}:{listening.getsockname()[1]}", list(app.models))
            server.run(sockets=[listening])


def warn_of_exposure(host: str, *, has_tls: bool, has_tokens: bool) -> None:
    """Warn of an address that other machines can reach without TLS or without a token."""
    missing = [what for what, there in (("TLS", has_tls), ("token", has_tokens)) if not there]
    if missing and not is_local(host):
        warnings.warn(
            f"{host} can be reached from other machines, and the server has no {' and no '.join(missing)}: whoever "
            f"reaches it may use it, or read what passes",
            stacklevel=5,
        )


@contextmanager
def _closing(app: Application) -> Iterator[Application]:
    try:
        yield app
    finally:
        app.close()


@contextmanager
def _stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Handle signals before and after uvicorn runs; uvicorn raises its signals again when it has stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
