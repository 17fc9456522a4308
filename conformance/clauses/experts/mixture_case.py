"""The case of one module of experts, whose tokens choose several of them, and its case spaces."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from conformance.cases.case import Case, Space
from conformance.clauses.experts.case import Index
from conformance.numerics.dtypes import ADAPTER_DTYPES

ROUTINGS = ("uneven", "absent", "duplicates", "idle-first", "one", "idle-middle", "idle-last", "all-absent")


@dataclass(frozen=True)
class MixtureCase(Case):
    """One module of E experts: tokens x [m, k], each with `slots` experts of inner width n, and adapters of rank r.

    Fields:
        experts, slots: the number of experts, and of those that a token chooses.
        kind: `gated` (as Mixtral), `interleaved` (as GPT-OSS: transposed, biases, clamped), `ungated` (as NemotronH).
        routing: as in a GroupedCase; `duplicates` gives a token the same expert twice. The p of an absent slot is NaN.
        scale: alpha ÷ r.   adapter: dtype of A and B, or `same`.   sizes: the relation between k, n and r.
    """

    m: int = 1
    k: int = 1
    n: int = 1
    r: int = 1
    experts: int = 1
    slots: int = 1
    kind: str = "gated"
    routing: str = "uneven"
    scale: float = 1.0
    adapter: str = "same"
    sizes: str = "free"


def tamed(case: MixtureCase) -> MixtureCase:
    """The case with experts enough for its routing and slots."""
    least = {"idle-first": 2, "idle-last": 2, "idle-middle": 3}.get(case.routing, 1)
    return dataclasses.replace(case, experts=max(case.experts, least))


def routes(case: MixtureCase) -> Index:
    """The expert of each slot of each token, [m, slots]."""
    random = np.random.default_rng([case.seed, case.m, case.experts, case.slots])
    absent = np.array([-1, case.experts, case.experts + 7])
    if case.routing == "all-absent":
        return absent[np.arange(case.m * case.slots) % 3].reshape(case.m, case.slots)
    left_out = {"idle-first": 0, "idle-last": case.experts - 1, "idle-middle": case.experts // 2}.get(case.routing)
    every = np.array([e for e in range(case.experts) if e != left_out])
    if case.routing == "one":
        every = every[[case.seed % len(every)]]
    chosen = np.stack([random.permutation(np.resize(random.permutation(every), case.slots)) for _ in range(case.m)])
    if case.routing == "duplicates":
        chosen[:, -1] = chosen[:, 0]
    if case.routing == "absent":
        gone = random.random(chosen.shape) < 0.3
        gone[0], gone[-1, 0] = True, False  # a token without any expert, and one with an expert
        chosen = np.where(gone, absent[random.integers(0, 3, chosen.shape)], chosen)
    return np.asarray(chosen, dtype=np.int64)


MIXTURE = Space(
    MixtureCase,
    tame=tamed,
    m=(3, 5, 8),
    k=(4, 6, 8, 12),
    n=(4, 3, 6, 8),
    r=(2, 1, 3, 4),
    experts=(2, 3, 4, 1),
    slots=(2, 1, 3),
    kind=("gated", "interleaved", "ungated"),
    routing=ROUTINGS[:-1],
    scale=(1.0, 2.0, 0.5),
)
FEW = MIXTURE.narrowed(m=(3, 5), k=(4, 6), n=(4, 6), r=(2, 3), experts=(2, 3), slots=(2,), scale=(2.0,))


def partnered(case: MixtureCase) -> MixtureCase:
    """The case with an adapter of another dtype, the one that commonly accompanies the case's own."""
    return dataclasses.replace(tamed(case), adapter=ADAPTER_DTYPES[case.dtype])


MIXED = Space(MixtureCase, tame=partnered, **FEW.values)
