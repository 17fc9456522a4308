"""A right client and server whose parts known-bad twins replace."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import reference
from tests import right_fhe
from tests.known_bad import record


class Right(right_fhe.Right):
    """An instance is a target; it exposes what the group `remote` needs."""

    client: type[reference.RemoteClient] = reference.RemoteClient
    serve = staticmethod(reference.serve)
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
    """Register a defective part, or a target with one, as a known-bad twin."""

    def register(kind: type) -> type:
        part = next((name for name, right in PARTS.items() if issubclass(kind, right)), None)
        target = kind() if part is None else type(kind.__name__, (Right,), {part: kind})()
        record(kind.__name__, target, clause, groups=("remote",), says=says, dtypes=("float32",))
        return kind

    return register
