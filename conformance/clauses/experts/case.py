"""The case of one grouped layer, whose rows choose their expert, and the case spaces of the clauses on it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conformance.cases.case import Space
from conformance.cases.laid_out_case import LaidOutCase
from conformance.cases.linear_case import LONG_SCALE, exact_scale
from conformance.cases.memory_layout import LAYOUTS
from conformance.numerics.dtypes import ADAPTER_DTYPES

Index = NDArray[np.int64]
Chosen = NDArray[np.bool_]
ROUTINGS = ("uneven", "idle-first", "absent", "one", "idle-middle", "few", "idle-last", "all-absent")


@dataclass(frozen=True)
class GroupedCase(LaidOutCase):
    """One layer of E experts: y [*, n] from x [*, k] with rank r; m rows spread over the `lead` dimensions.

    Fields:
        experts: E, the number of experts.
        routing: the experts that rows choose: `uneven`, `one` alone, all but the first (`idle-first`), one in the
            middle or the last, `absent` (a third of the rows has no expert), `all-absent`, `few` (fewer rows than
            experts).
        index: dtype of the indices or offsets.
        base: whether there is a weight; without one the update alone is computed.
        scale, bias, lead, values, adapter, x, g, w, ab, training, dropout, position, autocast, sizes: as in a
            LinearCase; each expert has operands of its own.
        special: `nan` or `inf` in one row of x, `nan-absent` (in every absent row), `near-overflow`,
            `overflow-before-scale` (the update fits the dtype only after scaling; W = 0), `probe` (r = k = n, A = B =
            I and no weight: y shows the dropout mask).
    """

    experts: int = 1
    routing: str = "uneven"
    index: str = "int64"
    base: bool = True
    bias: bool = False
    training: bool = True
    dropout: float = 0.0
    position: str = "post"


def tamed(case: GroupedCase) -> GroupedCase:
    """The case made consistent: experts enough for its routing, fewer rows than experts for `few`."""
    experts = max(case.experts, {"idle-first": 2, "idle-last": 2, "idle-middle": 3, "few": 3}.get(case.routing, 1))
    m = case.row_count
    if case.routing == "few":
        m = min(m, experts - 1)
        m = m if case.lead == "2d" or m == 0 else min(m, 2)  # which three dimensions do not round up
    changes: dict[str, object] = {"experts": experts, "m": m}
    if case.special == "probe":
        changes |= {"k": case.n, "r": case.n, "base": False, "bias": False}
    if not case.base:
        changes["bias"] = False
    if case.values == "integers":
        changes["scale"] = exact_scale(case.scale)
    return dataclasses.replace(case, **changes)  # type: ignore[arg-type]


def routes(case: GroupedCase) -> Index:
    """The expert of each row."""
    count, experts = int(np.prod(case.leading)), case.experts
    random = np.random.default_rng([case.seed, count, experts])
    every = random.permutation(experts)
    absent = np.array([-1, experts, experts + 7])
    if case.routing == "all-absent":
        return absent[np.arange(count) % 3]
    if case.routing == "one":
        return np.full(count, every[0])
    left_out = {"idle-first": 0, "idle-last": experts - 1, "idle-middle": experts // 2}.get(case.routing)
    every = every[every != left_out]
    shares = 1 / np.arange(1.0, len(every) + 1)
    chosen = every[random.choice(len(every), count, p=shares / shares.sum())]
    chosen[: len(every)] = every[:count]  # an expert is idle only where the routing says so, or rows are too few
    chosen = random.permutation(chosen)
    if case.routing == "absent":
        gone = np.arange(count) % 3 == case.seed % 3
        chosen = np.where(gone, absent[random.integers(0, 3, count)], chosen)
    return np.asarray(chosen, dtype=np.int64)


GROUPED = Space(
    GroupedCase,
    tame=tamed,
    m=(4, 7, 12, 21, 33),
    k=(3, 8, 16, 17, 40),
    n=(5, 8, 16, 17, 36),
    r=(1, 2, 4, 8, 9),
    experts=(2, 1, 3, 4, 8),
    routing=ROUTINGS[:-1],
    index=("int64", "int32"),
    base=(True, True, True, False),
    scale=(1.0, 2.0, -1.0, 0.5, LONG_SCALE),
    bias=(False, True),
    values=("integers", "normal", "normal"),
    training=(True, False),
)
SMALL = GROUPED.narrowed(
    m=(5, 7, 12), k=(3, 8, 17), n=(5, 8), r=(1, 2, 4), experts=(2, 3, 4), scale=(1.0, 2.0, LONG_SCALE), training=(True,)
)
NORMAL = SMALL.narrowed(values=("normal",))
LAYOUT = SMALL.narrowed(x=LAYOUTS, g=LAYOUTS, w=LAYOUTS[:-1], ab=LAYOUTS[:-1], lead=("2d", "3d", "4d"))
# no r = 1: autograd would sum a gradient of shape [E, 0, K], a mistake an empty batch may cause, to [E, 1, K]
LEADING = SMALL.narrowed(m=(2, 0, 6, 5, 1), r=(2, 4), lead=("1d", "3d", "4d", "2d"), routing=ROUTINGS)


def partnered(case: GroupedCase) -> GroupedCase:
    """The case with an adapter of another dtype, the one that commonly accompanies the case's own."""
    return dataclasses.replace(tamed(case), adapter=ADAPTER_DTYPES[case.dtype])


MIXED = Space(GroupedCase, tame=partnered, **SMALL.values)
