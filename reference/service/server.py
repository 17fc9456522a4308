"""The server of split models; it imports its packages when it starts."""

from collections.abc import Callable, Collection
from pathlib import Path

from ..encrypted.backends import MakeBackend, backend_for
from .encrypted_transport import ServerTLS
from .protocol import INSTALL, Limits


def serve(
    model_dir: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    backend: MakeBackend | None = None,
    workers: int = 1,
    limits: Limits | None = None,
    grace: float = 600.0,
    ready: Callable[[str, list[str]], object] | None = None,
    certificate: str | Path | None = None,
    private_key: str | Path | None = None,
    client_ca: str | Path | None = None,
    tokens: Collection[str] = (),
) -> None:
    """Serve the models that `save_and_clear_private_info` wrote, until SIGTERM or SIGINT.

    The server holds integer weights, encryption parameters and, only in memory, evaluation keys. It evaluates products
    in separate processes of `multiprocessing`: a script that calls this function needs the usual
    ``if __name__ == "__main__"``. When it stops, it finishes running requests and refuses new ones.

    Args:
        model_dir: the folder ``path/server``, or one model's folder in it.
        host, port: the address to listen on; port 0 chooses a free port.
        backend: makes a `Backend` from a model's parameters; a function or class that can be imported. None makes the
            one that these parameters belong to.
        workers: the number of products evaluated at the same time; one product already uses all cores.
        limits: see `Limits`; None for its defaults.
        grace: seconds to finish running requests after a signal; what is still arriving then is refused.
        ready: called with the address and the models' names once the server listens.
        certificate, private_key: files in PEM format, with which the server speaks TLS; both or none.
        client_ca: a file with the authorities whose clients are admitted; it needs a certificate.
        tokens: bearer tokens, of which each request must have one; without tokens anyone who reaches the address can
            use the server.
    Warns:
        UserWarning: for an address that other machines can reach without TLS or without a token, and for a model
            whose encryption is not secure.
    Raises:
        ImportError: without starlette and uvicorn, or the backend's library, with the command that installs it.
        ValueError: naming a model's folder that is missing or damaged, or a file of TLS that cannot be used; for a
            token that could be guessed.
        OSError: if it cannot listen on the address.
    """
    try:
        from .listener import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "h11"):
            raise
        raise ImportError(f"a server needs starlette and uvicorn: {INSTALL}") from error
    if (certificate is None) != (private_key is None) or (client_ca is not None and certificate is None):
        given = {"certificate": certificate, "private_key": private_key, "client_ca": client_ca}
        there = ", ".join(name for name, file in given.items() if file is not None)
        raise ValueError(f"only {there} came: TLS needs a certificate and a private_key")
    tls = None
    if certificate is not None and private_key is not None:
        tls = ServerTLS(certificate, private_key, client_ca)
    limits = limits or Limits()
    run(Path(model_dir), host, port, backend or backend_for, workers, limits, grace, ready, tls, tokens)
