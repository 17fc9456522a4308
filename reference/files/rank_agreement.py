"""Agreement of the ranks that hold a sharded model: an error on one of them is an error on all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..sharded import is_sharded

KINDS = {kind.__name__: kind for kind in (ValueError, FileNotFoundError, PermissionError, OSError)}


class Ranks:
    """The ranks over which the parameters of a model are sharded; this process alone if none is.

    Args:
        model: every rank makes its own `Ranks`, and enters `together` as often as the others.
    Attributes:
        is_first: whether this rank writes files.
    """

    def __init__(self, model: nn.Module) -> None:
        meshes: list[Any] = []
        for parameter in model.parameters():
            sharded: Any = parameter
            if is_sharded(parameter) and sharded.device_mesh not in meshes:
                meshes.append(sharded.device_mesh)
        self._groups = [mesh.get_group(dimension) for mesh in meshes for dimension in range(mesh.ndim)]
        self.is_first = not any(index for mesh in meshes for index in mesh.get_coordinate() or ())

    @property
    def is_one(self) -> bool:
        """Whether this process holds the whole model."""
        return not self._groups

    @contextmanager
    def together(self) -> Iterator[None]:
        """A region whose error on any rank is raised on every rank; it must not communicate.

        Raises:
            ValueError, OSError, RuntimeError: naming the rank that failed, on the others.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as failed:
            if self.is_one:
                raise
            error = failed
        told = self._first_of(_described(error))
        if error is not None:
            raise error
        if told is not None:
            kind, text = told
            raise KINDS.get(kind, RuntimeError)(text)

    def _first_of(self, mine: tuple[str, str] | None) -> tuple[str, str] | None:
        """The description of the first error of any rank, if there is one."""
        from torch import distributed

        for group in self._groups:
            found: list[Any] = [None] * distributed.get_world_size(group)
            distributed.all_gather_object(found, mine, group=group)
            mine = next((each for each in found if each is not None), None)
        return mine


def _described(error: Exception | None) -> tuple[str, str] | None:
    if error is None:
        return None
    from torch import distributed

    kind = next((name for name, known in KINDS.items() if isinstance(error, known)), type(error).__name__)
    return kind, f"rank {distributed.get_rank()} failed: {error}"
