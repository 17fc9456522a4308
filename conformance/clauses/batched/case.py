"""The case of one batch whose rows use different adapters, and the case spaces of the clauses on batches."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from conformance.cases.case import Space
from conformance.cases.laid_out_case import LaidOutCase
from conformance.cases.memory_layout import LAYOUTS
from conformance.numerics.dtypes import ADAPTER_DTYPES


@dataclass(frozen=True)
class BatchedCase(LaidOutCase):
    """One batch: x [*, k] with m rows spread over the `lead` dimensions, one weight [n, k], several adapters.

    Fields:
        r: the largest rank, to which all adapters are padded.
        adapters: the number of adapters, L.
        routing: the adapter of each row: `mixed` (each adapter and none, in random order), `one` (a single adapter),
            `none`, `idle-first`, `idle-middle`, `idle-last` (all but this one), `sorted`, `alternating`, `uneven` (one
            adapter has all rows but one), `ends-none` (the first and the last row have no adapter).
        ranks: `none` (the argument is None), `full` (every rank is r), `different`, `zero` (one of them is 0).
        scale: that of the first adapter.   scales: whether the others have other ones: `different`, `equal`.
        index: dtype of adapter_index and ranks.
        lead, values, adapter, x, g, w, ab, sizes: as in a LinearCase; adapter_index has the layout of x's rows
            if that is `strided`.
        special: `nan` or `inf` in one row of x.
        padding: what the adapters hold from their rank on: `zeros`, `nan`.
        autocast: dtype of the autocast region.
    """

    adapters: int = 1
    routing: str = "mixed"
    ranks: str = "none"
    scales: str = "different"
    bias: bool = False
    index: str = "int64"
    padding: str = "zeros"


def tamed(case: BatchedCase) -> BatchedCase:
    """The case made consistent: one row for a 1-D x, integer scales for integers, few rows in the exact lane."""
    if case.values == "integers":
        return dataclasses.replace(case, scale=case.whole_scale, m=min(case.row_count, 9))
    return dataclasses.replace(case, m=case.row_count)


ROUTINGS = (
    *("mixed", "one", "none", "idle-first", "idle-middle", "idle-last"),
    *("sorted", "alternating", "uneven", "ends-none"),
)
USED = tuple(routing for routing in ROUTINGS if routing != "none")
BATCHED = Space(
    BatchedCase,
    tame=tamed,
    m=(1, 2, 5, 9, 17, 33),
    k=(1, 3, 16, 17, 33, 70),
    n=(2, 5, 16, 17, 35, 67),
    r=(1, 3, 4, 8, 17),
    adapters=(1, 2, 3, 5, 9),
    routing=ROUTINGS,
    ranks=("none", "full", "different", "zero"),
    scale=(1.0, 2.0, -1.0, 0.5),
    scales=("different", "equal"),
    bias=(False, True),
    index=("int64", "int32"),
    values=("integers", "normal", "normal", "normal"),
)
SMALL = BATCHED.narrowed(
    m=(5, 9, 17), k=(3, 17, 33), n=(5, 16, 35), r=(1, 3, 4), adapters=(2, 3, 5), scale=(1.0, 2.0, -1.0)
)
LAYOUT = SMALL.narrowed(x=LAYOUTS, g=LAYOUTS, w=LAYOUTS[:-1], ab=LAYOUTS[:-1], lead=("2d", "3d", "4d"))
LEADING = SMALL.narrowed(m=(2, 0, 3, 5, 1), lead=("1d", "3d", "4d", "2d", "3d"))
NORMAL = SMALL.narrowed(values=("normal",))
PADDED = SMALL.narrowed(ranks=("different", "zero"), r=(2, 3, 4, 8), padding=("nan",))


def partnered(case: BatchedCase) -> BatchedCase:
    """The case with adapters of another dtype, the one that commonly accompanies the case's own."""
    return dataclasses.replace(tamed(case), adapter=ADAPTER_DTYPES[case.dtype])


MIXED = Space(BatchedCase, tame=partnered, **SMALL.values)
