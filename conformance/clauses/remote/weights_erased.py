"""Erased weights: once the server's part is saved, the client's process holds no remote weight."""

from __future__ import annotations

import gc
from array import array
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch

from conformance.clauses.fhe.key_pairs import known_keys
from conformance.clauses.fhe.oracle import by_column
from conformance.clauses.remote.clients import (
    BATCHES,
    BITS,
    CUSTOM,
    LIBRARIES,
    RemoteCase,
    batch,
    both,
    layers,
    same,
    save,
    server_of,
    weights,
)
from conformance.clauses.remote.server_process import scratch
from conformance.clauses.remote.wire import Wire
from conformance.judgement.outcomes import require
from conformance.numerics.formats import Array
from conformance.specification.clause import clause
from conformance.target.expected_errors import refuses
from conformance.target.subject import Subject

MODES = ("torch", "disable", "simulate", "execute")


@clause(
    "REM-CLEARED",
    sentence="""After save_and_clear_private_info no tensor, array, bytes object or list in the client's process holds
    a row or column of a remote weight, as floats or as integers. Modes torch, disable, simulate and execute then
    raise errors, and mode remote works.""",
    why="The model's owner hands out the client, which must not contain the weights that stay on the server.",
    cases=BATCHES.narrowed(m=(2,), lead=("2d",)),
    dtypes=("float32",),
    needs=CUSTOM,
    library=LIBRARIES,
    weight=0.01,
)
def test_weights_are_gone(subject: Subject, case: RemoteCase) -> float | None:
    x, g = batch(case, subject.device)
    server = server_of(subject)
    before = holders()  # other holders of these weights, kept alive so that no new object gets their id
    before += storages(before)  # a storage object that the target requests later is then not new
    with Wire(server.port) as wire:
        hybrid = layers(subject, wire.address)
        expected = both(hybrid, "disable", x, g)
        with scratch() as folder:
            save(hybrid, folder)
        known = {id(holder) for holder in before}
        left = found([holder for holder in holders() if id(holder) not in known])
        require(not left, _described(left))
        del left
        for mode in MODES:
            refuses(f"mode {mode} after clearing", partial(hybrid, x, fhe=mode), types=(RuntimeError, ValueError))
        with known_keys(server, hybrid):
            same(both(hybrid, "remote", x, g), expected, " after clearing")
    return None


def holders() -> list[Any]:
    """All tensors, storages, arrays, bytes and lists of numbers that the garbage collector reaches."""
    every = gc.get_objects()
    once, more = _of_kinds(every), gc.get_referents(*every)
    for _ in range(4):  # untracked objects are reached through tracked ones, at most a few levels deep
        once |= _of_kinds(more)
        more = gc.get_referents(*(thing for thing in more if type(thing) in UNTRACKED and not gc.is_tracked(thing)))
    return [thing for thing in once.values() if not isinstance(thing, list) or _are_numbers(thing)]


def _of_kinds(things: list[Any]) -> dict[int, Any]:
    """The objects that may hold numbers, by id."""
    kinds = {kind for kind in set(map(type, things)) if issubclass(kind, KINDS)}
    return {id(thing): thing for thing in things if type(thing) in kinds}


KINDS: Any = torch.Tensor | torch.UntypedStorage | np.ndarray | bytes | bytearray | memoryview | array | list
UNTRACKED = (dict, tuple)  # containers that the collector may leave untracked
MOST = 2**28  # bytes; larger objects are not read


def storages(things: list[Any]) -> list[Any]:
    """The storages of the tensors that have one."""
    had = []
    for thing in things:
        if isinstance(thing, torch.Tensor):
            with suppress(RuntimeError, NotImplementedError):
                had.append(thing.untyped_storage())
    return had


def found(things: list[Any]) -> list[tuple[Any, str]]:
    """The objects that hold a row or a column of a remote weight, each with the form that was found."""
    patterns = dict(_patterns())
    contents = [(thing, _contents(thing)) for thing in things]
    everything = b"|".join(content for _, content in contents)
    present = {form: pattern for form, pattern in patterns.items() if pattern in everything}
    return [(thing, form) for thing, content in contents for form, pattern in present.items() if pattern in content]


def _patterns() -> list[tuple[str, bytes]]:
    listed: list[tuple[str, bytes]] = []
    for name, weight in weights().items():
        if weight.ndim == 2:
            listed += _forms(f"a row of {name}'s weight", weight[0], by_column(weight, BITS).values[0])
            listed += _forms(f"a column of {name}'s weight", weight[:, 0], by_column(weight.T, BITS).values[0])
    return listed


def _forms(what: str, row: Array, q: Array) -> list[tuple[str, bytes]]:
    floats = torch.from_numpy(np.array(row))
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    held = [(f"{what} as {kind}", floats.to(kind).view(torch.uint8).numpy().tobytes()) for kind in kinds]
    for kind in ("f8", "f4", "i8", "i4", "i2", "i1"):
        held.append((f"{what}, quantised, as {np.dtype(kind)}", q.astype(kind).tobytes()))
    return held


def _are_numbers(values: list[Any]) -> bool:
    return 8 <= len(values) <= 2**16 and all(type(value) in (int, float) for value in values)


def _contents(thing: Any) -> bytes:
    """The bytes of an object; for a tensor those of its whole storage."""
    try:
        if isinstance(thing, torch.Tensor):
            thing = thing.untyped_storage()
        if isinstance(thing, torch.UntypedStorage):
            if thing.nbytes() > MOST or not thing.nbytes():
                return b""
            return torch.empty(0, dtype=torch.uint8, device=thing.device).set_(thing).cpu().numpy().tobytes()
        if isinstance(thing, list):
            return np.array(thing, np.float64).tobytes()
        if isinstance(thing, np.ndarray) and (thing.dtype.hasobject or thing.nbytes > MOST):
            return b""
        # by the base class: a masked array cannot be read otherwise
        return np.ndarray.tobytes(thing) if isinstance(thing, np.ndarray) else bytes(thing)
    except (RuntimeError, TypeError, ValueError, AttributeError, OverflowError, BufferError):
        return b""  # the object has no storage or cannot be read


def _described(left: list[tuple[Any, str]]) -> str:
    if not left:
        return ""
    thing, form = left[0]
    return f"{len({id(each) for each, _ in left})} objects still hold weights; a {type(thing).__name__} holds {form}"
