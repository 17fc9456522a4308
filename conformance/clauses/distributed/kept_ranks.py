"""Ranks that are kept for the next case, because forks, and first calls of torch in a process, cost much time.

Kept ranks receive their work as bytes: its code, its closure, and the name of the subject, since they have the target
already. If one rank fails, ends or hangs, all are discarded. Work that fails on ranks which have done other cases is
repeated on new ranks, and only the second result counts, so that one case cannot spoil the next.
"""

from __future__ import annotations

import atexit
import io
import marshal
import os
import pickle
import sys
from types import CellType, FunctionType
from typing import Any

from conformance.clauses.distributed import ranks
from conformance.clauses.distributed.rank_process import Answer, Work, patience
from conformance.clauses.distributed.ranks import Ranks
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.target.subject import Subject

MOST = 64  # works for the same ranks; each may leave process groups and threads behind


class Keeper:
    """The ranks that a process keeps for one target, by the number of ranks."""

    def __init__(self) -> None:
        self.kept: dict[int, Ranks] = {}
        self._made_for: tuple[int, int, float] | None = None
        self._target: Any = None

    def __call__(self, world: int, work: Work) -> list[Answer]:
        """Answer as `on_ranks` does."""
        target, written = packed(work)
        made_for = (os.getpid(), id(target), patience())
        if made_for != self._made_for:
            self.end()
            self._made_for, self._target = made_for, target  # kept alive, so that no other object gets its id
        found = self.kept.pop(world, None)
        if found is not None:
            if written is not None and found.alive() and found.done < MOST:
                try:
                    answers = found.ask(written)
                    self.kept[world] = found
                    return answers
                except (Violation, Refused, Inconclusive, RuntimeError, OSError):
                    pass  # the result on new ranks counts
            found.end()
        return self._on_new(world, work, written)

    def _on_new(self, world: int, work: Work, written: bytes | None) -> list[Answer]:
        made = Ranks(world, work, self._read if written is not None else None, self.kept.values())
        try:
            answers = made.answers()
        except BaseException:
            made.end()
            raise
        if written is None:
            made.end()
        else:
            self.kept[world] = made
        return answers

    def _read(self, written: bytes) -> Work:
        """On a rank, read the work from bytes."""
        work: Work = _Unpickler(io.BytesIO(written), self._target).load()
        return work

    def end(self) -> None:
        """End all kept ranks, unless they belong to the process that this one was forked from."""
        if self._made_for is not None and self._made_for[0] == os.getpid():
            for found in self.kept.values():
                found.end()
        self.kept, self._made_for, self._target = {}, None, None


def packed(work: Work) -> tuple[Any, bytes | None]:
    """The target that a work uses, and the work as bytes; None if it uses no target or cannot be pickled."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    try:
        pickler.dump(work)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError):
        return None, None
    return (pickler.target, buffer.getvalue()) if pickler.target is not None else (None, None)


class _Pickler(pickle.Pickler):
    """A pickler that also writes nested functions, and writes a subject by its name."""

    target: Any = None

    def persistent_id(self, thing: Any) -> Any:
        if not isinstance(thing, Subject):
            return None
        if self.target is None:
            self.target = thing.target
        if thing.target is not self.target or getattr(thing.target, thing.name, None) != thing.thing:
            raise pickle.PicklingError("the subject is not the object that the target has under this name")
        return thing.name, thing.device, thing.lane, thing.dropout_positions, thing.conventions

    def reducer_override(self, thing: Any) -> Any:
        if not isinstance(thing, FunctionType) or "<locals>" not in thing.__qualname__:
            return NotImplemented
        if vars(sys.modules[thing.__module__]) is not thing.__globals__:
            raise pickle.PicklingError("the function's module is not the one it was defined in")
        held = tuple(cell.cell_contents for cell in thing.__closure__ or ())
        return _function, (marshal.dumps(thing.__code__), thing.__module__, thing.__defaults__, held)


class _Unpickler(pickle.Unpickler):
    """An unpickler for the output of `_Pickler`, in a process that has the target."""

    def __init__(self, file: io.BytesIO, target: Any) -> None:
        super().__init__(file)
        self.target = target

    def persistent_load(self, key: Any) -> Subject:
        name, device, lane, positions, conventions = key
        return Subject(name, getattr(self.target, name), self.target, device, lane, positions, conventions)


def _function(code: bytes, module: str, defaults: tuple[Any, ...] | None, held: tuple[Any, ...]) -> FunctionType:
    cells = tuple(CellType(thing) for thing in held)
    return FunctionType(marshal.loads(code), vars(sys.modules[module]), None, defaults, cells)


KEEPER = Keeper()
ranks.KEEPERS[:] = [KEEPER]
atexit.register(KEEPER.end)
