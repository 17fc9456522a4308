"""The two halves of a batch's update on sorted rows: `lora_shrink` and `lora_expand`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from conformance.cases.memory_layout import place
from conformance.clauses.batched.batch import Batch
from conformance.clauses.batched.case import BATCHED, BatchedCase
from conformance.clauses.batched.oracle import Oracle
from conformance.clauses.batched.row_adapters import Integers, rows_of
from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Refused, Violation, require
from conformance.numerics.budget import RowChain
from conformance.numerics.formats import Array, format_of, rounded
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject, poisoned_memory

SEGMENTED = BATCHED.narrowed(
    m=(5, 1, 0, 9, 17, 33), k=(3, 17, 33), n=(5, 16, 35), r=(1, 3, 4, 8), bias=(False,), padding=("zeros", "nan")
)
SMALL = SEGMENTED.narrowed(m=(5, 9, 17), r=(3, 4), values=("normal",), padding=("zeros",), ranks=("none", "different"))


class Segments:
    """A batch with its rows sorted into segments: empty ones, repeated ones, some without an adapter, a rest of rows.

    Attributes:
        ends: [G], the end of each segment.   adapters: [G], its adapter.   batch: the batch, whose index agrees.
    """

    def __init__(self, subject: Subject, case: BatchedCase) -> None:
        rows = rows_of(case)
        self.batch = batch = Batch(subject, case)
        random = np.random.default_rng([case.seed, rows, case.adapters])
        count = case.adapters + 3
        self.ends = np.sort(random.integers(0, rows + 1, count))
        self.ends[random.integers(0, count)] = self.ends[0]  # sorted again: an empty segment, wherever it falls
        self.ends = np.sort(self.ends)
        if case.seed % 2:
            self.ends[-1] = rows  # otherwise rows past the last segment may remain
        self.adapters = random.permutation(np.arange(count) % (case.adapters + 1)) - 1
        batch.index = np.full(rows, -1)
        for first, last, adapter in zip((0, *self.ends[:-1]), self.ends, self.adapters, strict=True):
            batch.index[first:last] = adapter
        kind = getattr(torch, case.index)
        self.metadata = [torch.from_numpy(v).to(batch.device, kind) for v in (self.ends, self.adapters)]

    @property
    def options(self) -> dict[str, torch.Tensor]:
        """The ranks as the target's keyword argument, if they are given."""
        found = self.batch.metadata
        return {"ranks": found["ranks"]} if "ranks" in found else {}

    @property
    def bound_x(self) -> Array:
        """x as a matrix, as both halves take it."""
        return self.batch.rows("x")

    def middle(self) -> Array:
        """S in the adapters' dtype, zeros beyond each rank and without an adapter."""
        found = np.zeros((len(self.batch.index), self.batch.case.r))
        for adapter in (int(each) for each in np.unique(self.batch.index) if each >= 0):
            rows, rank = self.batch.index == adapter, self.batch.ranks[adapter]
            found[rows, :rank] = self.bound_x[rows] @ self.batch.values["lora_A"][adapter, :rank].T
        return rounded(found, self.batch.adapter_dtype)


def called(call: Callable[..., Any], what: str, *arguments: Any, **options: Any) -> torch.Tensor:
    """One call of a half; its result must be a tensor."""
    with torch.no_grad(), poisoned_memory(), calling(what):
        found: Any = call(*arguments, **options)
    require(isinstance(found, torch.Tensor), f"{what} returned {type(found).__name__}: expected a tensor")
    return found  # type: ignore[no-any-return]


def shrunk(subject: Subject, segments: Segments) -> torch.Tensor:
    """S of the target."""
    batch = segments.batch
    x = batch.placed["x"].tensor.reshape(-1, batch.case.k)
    return called(
        subject.thing, "lora_shrink", x, batch.placed["lora_A"].tensor, *segments.metadata, **segments.options
    )


@clause(
    "BAT-SHRINK",
    sentence="""lora_shrink gives S_i = x_i A_eᵀ up to the rank of the adapter e of row i's segment, with empty segments
    and several segments of one adapter too.""",
    cases=SEGMENTED,
    subjects=("lora_shrink",),
)
def test_shrink(subject: Subject, case: BatchedCase) -> float | None:
    segments = Segments(subject, case)
    found = shrunk(subject, segments)
    expected, written = _shrunk(segments, found)
    shaped = found.shape == written.shape
    return judge(found.where(written, 0) if shaped else found, expected)


@clause(
    "BAT-SHRINK-REST",
    sentence="""lora_shrink's S is zero beyond an adapter's rank, in segments with -1, and in rows past the last
    segment.""",
    why="lora_expand does not read S there, but whoever sums or compares S does.",
    cases=SEGMENTED,
    level="SHOULD",
    subjects=("lora_shrink",),
    weight=0.5,
)
def test_rest_of_shrink(subject: Subject, case: BatchedCase) -> float | None:
    segments = Segments(subject, case)
    found = shrunk(subject, segments)
    return judge(found, _shrunk(segments, found)[0])


def _shrunk(segments: Segments, found: torch.Tensor) -> tuple[Expected, torch.Tensor]:
    """The expected S, in the dtype of the one found if that is allowed, and a mask of what lies within a rank."""
    batch, case = segments.batch, segments.batch.case
    value = np.zeros((len(batch.index), case.r))
    budget, written = np.zeros_like(value), torch.zeros(value.shape, dtype=torch.bool)
    for adapter in (int(each) for each in np.unique(batch.index) if each >= 0):
        rows, rank = batch.index == adapter, batch.ranks[adapter]
        down = batch.values["lora_A"][adapter, :rank]
        if rank:
            none = np.zeros((1, case.k)), np.zeros((rank, 1)), 0.0
            budget[rows, :rank] = RowChain(segments.bound_x[rows], down, None, *none, batch.rounding).budget
            value[rows, :rank] = segments.bound_x[rows] @ down.T
            written[torch.from_numpy(rows), :rank] = True
    wide = found.dtype == torch.float32  # S may be kept in the accumulator's dtype, as vLLM does
    expected = Expected(
        "S",
        value,
        None if batch.exact else budget,
        torch.float32 if wide else batch.adapter_dtype,
        certified=bool(value.any()),
    )
    return expected, written.to(found.device)


@clause(
    "BAT-EXPAND",
    sentence="""lora_expand gives base_i + s_e·S_i B_eᵀ with the adapter e of row i's segment, its own scale and rank;
    rows without an adapter are those of base bit for bit.""",
    cases=SEGMENTED,
    subjects=("lora_expand",),
)
def test_expand(subject: Subject, case: BatchedCase) -> float | None:
    segments = Segments(subject, case)
    batch, middle = segments.batch, segments.middle()
    base = rounded(segments.bound_x @ batch.values["weight"].T, batch.dtype)
    held = middle.copy()
    for row, adapter in enumerate(batch.index) if case.padding == "nan" else ():
        if adapter >= 0:
            held[row, batch.ranks[adapter] :] = batch.canary("lora_A")
    given = (
        place(held, batch.adapter_dtype, "packed", subject.device),
        place(base, batch.dtype, "packed", subject.device),
    )
    found = called(
        subject.thing,
        "lora_expand",
        *(placed.tensor for placed in given),
        batch.placed["lora_B"].tensor,
        batch.metadata["scale"],
        *segments.metadata,
        **segments.options,
    )
    for name, placed in zip(("S", "base"), given, strict=True):
        require(not placed.contents_changed(), f"{name} was modified in place")
    return judge(found, _expanded(segments, middle, base))


def _expanded(segments: Segments, middle: Array, base: Array) -> Expected:
    """The expected result of lora_expand for this S and base."""
    batch, how = segments.batch, segments.batch.rounding
    update, budget = np.zeros_like(base), np.zeros_like(base)
    for adapter in (int(each) for each in np.unique(batch.index) if each >= 0):
        rows, rank, scale = batch.index == adapter, batch.ranks[adapter], batch.scales[adapter]
        up = batch.values["lora_B"][adapter, :, :rank]
        if not rank:
            continue
        chain = RowChain(middle[rows, :rank], None, None, np.eye(rank), up, scale, how)
        update[rows] = chain.update
        sums = np.abs(base[rows]) + np.abs(chain.update) + np.abs(base[rows] + chain.update)
        budget[rows] = chain.budget + (how.unit + how.accumulation(rank)) * sums + how.step
    exact = batch.exact and np.abs(base + update).max(initial=0) <= format_of(batch.dtype).exact
    terms = {"base": base, "adapter": update} if update.any() and base.any() else {}
    return Expected("y", base + update, None if exact else budget, batch.dtype, terms, certified=bool(base.any()))


@clause(
    "BAT-SEGMENTS",
    sentence="lora_expand of lora_shrink's S, on the rows sorted by adapter, gives the y of lora_batched_linear.",
    cases=SMALL,
    subjects=("lora_expand",),
    needs=("lora_shrink",),
    weight=0.5,
)
def test_both_halves(subject: Subject, case: BatchedCase) -> float | None:
    segments = Segments(subject, case)
    batch = segments.batch
    S = shrunk(dataclasses.replace(subject, thing=subject.target.lora_shrink), segments)
    x, weight = (batch.placed[name].tensor for name in ("x", "weight"))
    base = torch.nn.functional.linear(x.reshape(-1, case.k), weight)
    options = segments.options
    arguments = (S, base, batch.placed["lora_B"].tensor, batch.metadata["scale"], *segments.metadata)
    found = called(subject.thing, "lora_expand", *arguments, **options)
    return judge(found.reshape(*case.leading, case.n), Oracle(batch).y)


@clause(
    "BAT-SEGMENTS-REFUSE",
    sentence="""Segments whose ends decrease or exceed the rows, or that differ in number from the adapters, are refused
    with an error.""",
    level="SHOULD",
    cases=SMALL,
    subjects=("lora_shrink",),
    dtypes=("float32",),
    weight=0.34,
)
def test_malformed_segments(subject: Subject, case: BatchedCase) -> float | None:
    def broken(what: str, place: int, ends: Integers) -> None:
        segments = Segments(subject, case)
        segments.metadata[place] = torch.from_numpy(ends).to(segments.metadata[place])
        try:
            shrunk(subject, segments)
        except Refused:
            return
        except Violation as violation:
            if violation.__cause__ is not None:
                return
            raise
        raise Violation(f"lora_shrink returned although {what}: expected an error")

    given = Segments(subject, case)
    broken("an end exceeds the rows", 0, given.ends + rows_of(case) + 1 - given.ends[-1])
    broken("the ends decrease", 0, np.append(given.ends[1:], 0) if given.ends.any() else given.ends - 1)
    broken("there is one adapter less than ends", 1, given.adapters[:-1])
    return None
