"""A right client and server; a known-bad twin replaces one of their parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import reference
from reference.encrypted.encryption import ConcreteBackend, EncryptionError
from reference.service.worker import RefusedError, load
from tests.baselines import fhe
from tests.known_bad import record


def serve(
    model_dir: str, host: str = "127.0.0.1", port: int = 8000, *, backend: Callable[..., Any] = ConcreteBackend
) -> None:
    """Run `reference.serve` with `Here` in place of worker processes."""
    from reference.service import application

    application.Workers = Here  # type: ignore[assignment,misc]
    reference.serve(model_dir, host, port, backend=backend)


class Here:
    """A worker that evaluates in the server's process; importing torch in another process would take longer."""

    def __init__(self, model_dir: Path, make_backend: Any, *_: Any) -> None:
        self.models = load(model_dir, make_backend)

    def evaluate(self, model: str, module: str, key_name: str, key: bytes, ciphertext: bytes, *_: Any) -> bytes:
        held = self.models[model]
        try:
            return held.backend.evaluate(ciphertext, held.weights[module], key)
        except (EncryptionError, ValueError) as error:
            raise RefusedError(str(error)) from None

    def close(self) -> None:
        pass


class Right(fhe.Right):
    """A target for the group `remote`; an instance has the group's public names."""

    client: type[reference.RemoteClient] = reference.RemoteClient
    serve = staticmethod(serve)
    RemoteError = reference.RemoteError

    @cached_property
    def HybridFHEModel(self) -> Any:
        kind = self.client

        class HybridFHEModel(self.model):  # type: ignore[misc,name-defined]
            remote_module = self.RemoteModule

            def __init__(self, *args: Any, backend: Any = "exact", **options: Any) -> None:
                super().__init__(*args, backend=backend, **options)
                vars(self._split)["client"] = kind(self._split.server)

        return HybridFHEModel


PARTS = {
    "module": reference.RemoteModule,
    "model": reference.HybridFHEModel,
    "client": reference.RemoteClient,
}


def remote_breaks(clause: str, *, says: str) -> Any:
    """Return a decorator that registers a defective part or target as a known-bad twin."""

    def register(kind: type) -> type:
        part = next((name for name, right in PARTS.items() if issubclass(kind, right)), None)
        target = kind() if part is None else type(kind.__name__, (Right,), {part: kind})()
        record(kind.__name__, target, clause, groups=("remote",), says=says, dtypes=("float32",))
        return kind

    return register
