"""The forward pass of batches: the formula over sizes, routings, ranks, leading dimensions, layouts and dtypes."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conformance.clauses.batched.batch import TRAINABLE, Batch, output, run
from conformance.clauses.batched.case import BATCHED, LAYOUT, LEADING, MIXED, NORMAL, PADDED, SMALL, BatchedCase
from conformance.clauses.batched.oracle import Oracle
from conformance.clauses.batched.row_adapters import rows_of
from conformance.judgement.judge import compare, judge, worst
from conformance.judgement.outcomes import Inconclusive, require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.subject import Subject

LONG = {"m": 150, "k": 300, "n": 300, "r": 70, "adapters": 20}


def judged(subject: Subject, case: BatchedCase) -> float | None:
    """Judge the output."""
    batch = Batch(subject, case)
    return judge(output(subject, batch), Oracle(batch).y)


@clause(
    "BAT-FWD",
    sentence="""y_i = x_i Wᵀ + b + s_e·(x_i A_eᵀ) B_eᵀ, where e is the row's adapter, each adapter with its own scale
    and rank, whichever rows have which adapter.""",
    cases=BATCHED,
)
def test_batched_forward(subject: Subject, case: BatchedCase) -> float | None:
    return judged(subject, case)


@clause(
    "BAT-FWD-LEAD",
    sentence="""x may have any number of leading dimensions, including none and empty ones; adapter_index has the same
    ones, and so has y.""",
    cases=LEADING,
)
def test_batched_leading_dimensions(subject: Subject, case: BatchedCase) -> float | None:
    return judged(subject, case)


@clause(
    "BAT-FWD-LAYOUT",
    sentence="y does not depend on the strides or the storage offset of x, adapter_index, W, A and B.",
    cases=LAYOUT,
)
def test_batched_layouts(subject: Subject, case: BatchedCase) -> float | None:
    return judged(subject, case)


@clause(
    "BAT-FWD-MIXED",
    sentence="""When the adapters' dtype differs from that of x, x is cast to it for the update, and y keeps the dtype
    of the base output.""",
    feature="adapter_dtype",
    cases=MIXED,
    weight=0.5,
)
def test_batched_mixed_dtypes(subject: Subject, case: BatchedCase) -> float | None:
    return judged(subject, case)


@clause(
    "BAT-FWD-PADDING",
    sentence="What lora_A and lora_B hold beyond an adapter's rank is not read: NaN there does not show in y.",
    why="Serving libraries load adapters of several ranks into one buffer, over what an earlier adapter left there.",
    cases=PADDED,
)
def test_padding_is_not_read(subject: Subject, case: BatchedCase) -> float | None:
    return judged(subject, case)


@clause(
    "BAT-FWD-NONE",
    sentence="""A row with index -1 has the base's output alone, bit for bit what the same call gives if no row has an
    adapter.""",
    cases=SMALL.narrowed(routing=("ends-none", "mixed")),
)
def test_rows_without_an_adapter(subject: Subject, case: BatchedCase) -> float | None:
    batch = Batch(subject, case)
    without = batch.index < 0
    if not without.any():
        raise Inconclusive("each row has an adapter")
    y = output(subject, batch)
    bare = Batch(subject, case)
    bare.index = np.full_like(bare.index, -1)
    base = output(subject, bare)
    ratio = judge(base, Oracle(bare).y)
    expected = Oracle(batch).y
    require(y.shape == base.shape, f"y has shape {list(y.shape)}: expected {list(base.shape)}")
    rest = dataclasses.replace(expected, value=numbers(base), budget=None)
    seen, chosen = numbers(y).reshape(len(without), -1), without[:, None]
    want = numbers(base).reshape(len(without), -1)
    compare(np.where(chosen, seen, want).reshape(tuple(base.shape)), rest)
    return ratio


@clause(
    "BAT-FWD-IDLE",
    sentence="An adapter that no row uses is not read: NaN in its lora_A, lora_B and scale does not show in y.",
    cases=SMALL.narrowed(routing=("idle-first", "idle-middle", "idle-last", "one", "none")),
    weight=0.5,
)
def test_idle_adapters_are_not_read(subject: Subject, case: BatchedCase) -> float | None:
    batch = Batch(subject, case)
    for adapter in set(range(case.adapters)) - set(batch.index.tolist()):
        for name in ("lora_A", "lora_B"):
            batch.placed[name].tensor[adapter] = batch.canary(name)
        batch.metadata["scale"][adapter] = torch.nan
    return judge(output(subject, batch), Oracle(batch).y)


@clause(
    "BAT-FWD-NONFINITE",
    sentence="""A NaN or infinity in one row of x makes every element of that row of y non-finite, and changes no
    other row, whichever adapters they have.""",
    cases=NORMAL.narrowed(special=("nan", "inf")),
    weight=0.5,
)
def test_batched_nonfinite(subject: Subject, case: BatchedCase) -> float | None:
    if subject.device == "cpu" and case.dtype in ("bfloat16", "float16"):
        case = dataclasses.replace(case, m=1, lead="2d")  # torch's own CPU products in 16 bits read past a row's end
    y = output(subject, Batch(subject, case))
    expected = Oracle(Batch(subject, dataclasses.replace(case, special="none"))).y
    row, rows = case.seed % rows_of(case), rows_of(case)
    others = np.arange(rows) != row
    require(y.shape == expected.value.shape, f"y has shape {list(y.shape)}: expected {list(expected.value.shape)}")
    seen = numbers(y).reshape(rows, -1)
    require(not np.isfinite(seen[row]).any(), f"y[{row}] has finite elements although x[{row}] holds a {case.special}")
    assert expected.budget is not None
    rest = dataclasses.replace(
        expected, value=expected.value[others], budget=expected.budget[others], terms={}, mistakes={}
    )
    return compare(seen[others], rest)


@clause(
    "BAT-FWD-LONG",
    sentence="""y is right when the number of rows, features or adapters, or the rank, exceeds the block size of any
    kernel.""",
    cases=NORMAL,
    weight=0.67,
)
def test_batched_long_size(subject: Subject, case: BatchedCase) -> float | None:
    name = tuple(LONG)[case.seed % len(LONG)]
    longer = dataclasses.replace(case, **{name: LONG[name]})  # type: ignore[arg-type]
    return judged(subject, case if subject.lane == "interpreter" else longer)


@clause(
    "BAT-FWD-ALIGNED",
    sentence="""y and the gradients are right when every size is a multiple of 16 bytes, with ranks and rows without an
    adapter too.""",
    why="Fast paths begin there.",
    cases=BATCHED.narrowed(m=(16, 32, 8), k=(16, 32, 64), n=(16, 32, 48), r=(4, 8, 16), adapters=(2, 4, 8)),
    weight=0.5,
)
def test_aligned_sizes(subject: Subject, case: BatchedCase) -> float | None:
    batch = Batch(subject, case)
    oracle = Oracle(batch)
    ratio = judge(output(subject, batch), oracle.y)
    if subject.lacks("batched_gradients"):
        return ratio
    instance = run(subject, batch)
    return worst(ratio, *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))
