"""Effects on the process: settings, replaced functions, memory leaks; and rows beyond 2³¹ elements."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import itertools
import mmap
import sys
import warnings
from collections.abc import Iterator, Sequence

import torch

from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.isolation.allocated_memory import allocated
from conformance.isolation.monkeypatches import PRISTINE
from conformance.isolation.process_state import RANDOM, kept
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import Inconclusive, require
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Subject, run

TINY = SMALL.narrowed(m=(3,), k=(17,), n=(5,), r=(3,), scale=(2.0,), values=("normal",), training=(True,))
ROW = 2**30 + 64  # row stride in elements: the third row starts beyond 2³¹, where 32-bit offsets wrap
CALLS, CALLS_INTERPRETED = 100, 10
EACH = (1, 2, 16)  # tensors, objects, bytes: the least growth per call that is a leak
NOISE = (1, 50, 2048)  # smaller growth is ignored: measuring causes up to half of this


@clause(
    "LIN-SIDE-GLOBAL",
    "LAY-SIDE-GLOBAL",
    sentence="""Building and running change no setting of the process (default dtype, device, grad mode, autocast,
    precision, determinism, threads, warnings, errors, environment), and importing the target changes only
    environment variables, warning filters and the number of threads. Without dropout, running changes no random
    state, and importing changes none except a GPU's; it may draw from Python's, but not seed it.""",
    cases=SMALL,
    weight=0.25,
)
def test_settings_kept(subject: Subject, case: LinearCase) -> float | None:
    require(not PRISTINE.settings, f"importing the target changed {'; '.join(PRISTINE.settings)}")
    operands = subject.operands(case)
    with kept("building it", but=RANDOM):  # the constructor draws the adapter
        instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    with kept("the forward pass"):
        y = instance.forward()
    with kept("the backward pass"):
        instance.backward(y)
    return None


@clause(
    "LIN-SIDE-PATCH",
    "LAY-SIDE-PATCH",
    sentence="Importing, building and running replace no function or class of torch, NumPy or Python.",
    why="A patched function changes the results of all other code in the process.",
    cases=SMALL,
    weight=0.17,
)
def test_functions_kept(subject: Subject, case: LinearCase) -> float | None:
    run(subject, subject.operands(case))
    names = PRISTINE.names()
    require(not names, f"replaced by the target: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}")
    return None


@clause(
    "LIN-MEM-LEAK",
    "LAY-MEM-LEAK",
    sentence="""The number of live tensors and Python objects and the allocated memory do not grow with the number
    of calls.""",
    cases=TINY,
    dtypes=("float32",),
    weight=0.05,
)
def test_nothing_left_behind(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    x = instance.tensors["x"]

    def calls(number: int) -> None:
        for _ in range(number):
            # new memory in each call, so that a cache keyed by address grows
            instance.tensors["x"] = x.detach().clone().requires_grad_(True)
            instance.backward(instance.forward())
            for tensor in instance.tensors.values():
                tensor.grad = None

    number = CALLS_INTERPRETED if subject.lane == "interpreter" else CALLS
    calls(number)  # makes compiled kernels, caches and all else that is made once
    with _set_aside():
        counts = [_left()]
        for rounds in (2, 4):  # a suspected leak gets more rounds: growth that stops is no leak
            for _ in range(rounds):
                calls(number)
                counts.append(_left())
            if not (found := _leak(counts, number)):
                return None
    require(False, f"memory grows with the number of calls; {found}")
    return None


@contextlib.contextmanager
def _set_aside() -> Iterator[None]:
    """Hide the existing objects, up to a million, from the garbage collector, so that it counts only new ones."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _leak(counts: list[tuple[int, int, int]], number: int) -> str:
    """A description of a count that grew in every round of `number` calls; empty if none did."""
    for what, floor, each, *seen in zip(("live tensors", "objects", "bytes"), NOISE, EACH, *counts, strict=True):
        least = max(floor, number * each)
        if all(after - before >= least for before, after in itertools.pairwise(seen)):
            return f"{what}: {seen[0]}, " + ", ".join(f"after {number} more calls {count}" for count in seen[1:])
    return ""


def _left() -> tuple[int, int, int]:
    """Counts after a collection: live tensors, Python objects, and bytes allocated in C."""
    gc.collect()
    tensors = sum(
        issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()
    )  # isinstance may run an object's own code
    return tensors, sys.getallocatedblocks(), allocated()


@clause(
    "LIN-MEM-FAR",
    "LAY-MEM-FAR",
    sentence="y and all gradients are right when rows of x and g lie 2³¹ or more elements after the first row.",
    why="Offsets computed in 32 bits wrap there.",
    # at least 16 features: with fewer, MKL's float32 and float64 products of such rows are wrong
    cases=SMALL.narrowed(m=(3, 4), k=(17, 33, 70, 130), n=(16, 35), r=(3, 4, 17), values=("integers",)),
    dtypes=("bfloat16", "float32"),
    weight=0.35,
)
def test_far_rows(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    near = operands.placed["g"].tensor
    _check_torch(near, _place_far(operands, "g"), case.r)
    instance = subject.build(operands)
    near = operands.placed["x"].tensor
    instance.tensors["x"] = _place_far(operands, "x")
    _check_torch(near, instance.tensors["x"], case.r)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    instance.backward(y)
    oracle = oracle_for(subject, operands)
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle))


def _place_far(operands: Operands, name: str) -> torch.Tensor:
    """Move an operand to rows `ROW` elements apart; only the pages of the rows themselves take memory."""
    near = operands.placed[name]
    rows, features = near.tensor.shape
    count = ROW * (rows - 1) + features
    try:
        if operands.device == "cpu":
            buffer = _mostly_absent(count, near.tensor.dtype, [row * ROW for row in range(rows)], features)
        else:
            buffer = torch.empty(count, dtype=near.tensor.dtype, device=operands.device)
    except (OSError, RuntimeError, MemoryError, ValueError) as error:
        raise Inconclusive(f"no address space for {count} elements: {error}") from error
    far = buffer.as_strided((rows, features), (ROW, 1))
    far.copy_(near.tensor)
    operands.placed[name] = dataclasses.replace(near, tensor=far, buffer=buffer)
    return far


def _mostly_absent(count: int, dtype: torch.dtype, starts: Sequence[int], length: int) -> torch.Tensor:
    """A buffer of `count` zeros, of which `length` elements from each start can be written.

    The rest is read-only, so that it takes no memory and counts towards no memory limit.
    """
    pages = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the buffer is read-only
        buffer = torch.frombuffer(pages, dtype=dtype)
    library = ctypes.CDLL(None, use_errno=True)
    for start in starts:
        first = (buffer.data_ptr() + start * dtype.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
        end = buffer.data_ptr() + (start + length) * dtype.itemsize
        if library.mprotect(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.PROT_READ | mmap.PROT_WRITE):
            raise OSError(ctypes.get_errno(), "mprotect")
    return buffer


def _check_torch(near: torch.Tensor, far: torch.Tensor, rank: int) -> None:
    """Check that torch's own products are right for such rows: a target that uses them is not to blame.

    Raises:
        Inconclusive: if one of them is wrong.
    """
    rows, features = near.shape
    for size in (rank, rows, features):
        left, right = torch.ones(size, rows).to(near), torch.ones(features, size).to(near)
        for a, b in ((left, right), (left.T.contiguous().T, right.T.contiguous().T)):
            products = ((a @ t, t.T @ a.T, t @ b, b.T @ t.T) for t in (near, far))
            if not all(map(torch.equal, *products)):
                raise Inconclusive(f"torch's own product of {rows}x{features} is wrong on such rows")
