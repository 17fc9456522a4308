"""The server of split models; the packages that it needs are imported when it starts."""

from collections.abc import Callable
from pathlib import Path

from ..encrypted.encryption import Backend, ConcreteBackend
from ..encrypted.noise import EncryptionParameters
from .protocol import INSTALL, Limits


def serve(
    model_dir: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    backend: Callable[[EncryptionParameters], Backend] = ConcreteBackend,
    workers: int = 1,
    limits: Limits | None = None,
    grace: float = 600.0,
    ready: Callable[[str, list[str]], object] | None = None,
) -> None:
    """Serve the models that `save_and_clear_private_info` wrote, until SIGTERM or SIGINT.

    It holds integer weights, encryption parameters and evaluation keys, the latter in memory alone. Products are
    evaluated in processes of their own, started as `multiprocessing` does it: a script that calls this needs the
    usual ``if __name__ == "__main__"``. Running requests are finished at the end, new ones refused.

    Args:
        model_dir: the folder ``path/server``, or one model's folder in it.
        host, port: where it listens; port 0 is a free one. There is no authentication: who reaches it can use it.
        backend: makes a `Backend` from a model's parameters; a function or class that can be imported.
        workers: how many products are evaluated at once; one uses all cores already.
        limits: see `Limits`; its defaults if None.
        grace: seconds that running requests get at the end.
        ready: called with the address and the models' names once it listens.
    Raises:
        ImportError: without starlette and uvicorn, or the backend's library, with the command that installs it.
        ValueError: naming the model's folder, if it is missing or damaged.
        OSError: if it cannot listen there.
    """
    try:
        from .listener import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "h11"):
            raise
        raise ImportError(f"a server needs starlette and uvicorn: {INSTALL}") from error
    run(Path(model_dir), host, port, backend, workers, limits or Limits(), grace, ready)
