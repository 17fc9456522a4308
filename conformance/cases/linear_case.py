"""The case of one LoRA linear layer, and the sizes from which cases are drawn."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from conformance.cases.case import Case, Space


@dataclass(frozen=True)
class LinearCase(Case):
    """One LoRA linear layer: y [*, n] from x [*, k] with rank r; m tokens spread over the `lead` dimensions.

    Fields:
        lead: leading dimensions of x: `1d` (none), `2d`, `3d`, `4d`; m is rounded up to fill them.
        scale: alpha ÷ r, which is the factor of the update, except with `rslora`.
        values: `integers` (exact lane), `cancelling` (exact lane: large partial sums of a small result, exact in a
            float32 accumulator but not in a 16-bit one), `normal`, `positive` (nothing cancels), `huge-term`
            (one product of 32 times the others' size).
        adapter: dtype of lora_A and lora_B; `same` is the base's.
        x, g, w, ab: layout of the input, the upstream gradient, the weight, and lora_A and lora_B.
        special: `nan` or `inf` in one row of x, `zero-x`, `zero-B`, `denormal` x, or `identity` (r = k = n,
            lora_A = lora_B = I, W = 0: the output then shows the dropout mask of x or of the update);
            `near-overflow` (x so large that an intermediate is close to the largest finite number, and partial sums
            exceed it), `overflow-before-scale` (the update fits the dtype only after scaling; W = 0).
        autocast: dtype of the autocast region; operands then hold values that this dtype represents.
        sizes: the relation between m, k, n and r (`k=n`, `r=k` … as in `conformance.cases.size_relations`), or `free`.
    """

    m: int = 1
    k: int = 1
    n: int = 1
    r: int = 1
    scale: float = 1.0
    bias: bool = False
    lead: str = "2d"
    values: str = "integers"
    adapter: str = "same"
    x: str = "packed"
    g: str = "packed"
    w: str = "packed"
    ab: str = "packed"
    training: bool = True
    dropout: float = 0.0
    position: str = "post"
    special: str = "none"
    autocast: str = "off"
    sizes: str = "free"

    def cut_for(self, lane: str) -> LinearCase:
        """The case with sizes that the lane can afford: the interpreter runs one 16³ program in about 10 ms."""
        return tamed(self, WORK_INTERPRETED) if lane == "interpreter" else self

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading dimensions of x."""
        return leading_dimensions(self.m, self.lead)


LONG_SCALE = 0.3  # needs more than 32 bits, so that a scale that loses some shows


def exact_scale(scale: float) -> float:
    """The scale, or a whole number near its reciprocal if products of integers with the scale would round."""
    return scale if (64 * scale).is_integer() else float(round(1 / scale))


def leading_dimensions(m: int, lead: str) -> tuple[int, ...]:
    """Leading dimensions for m tokens, from none (`1d`) to three (`4d`); m is rounded up to fill them."""
    half = math.ceil(m / 2)
    return {"1d": (), "2d": (m,), "3d": (2, half), "4d": (2, 1, half)}[lead]


WORK = 2**20  # products in one case's base matmul: enough to cross every block size, few enough for many cases
WORK_INTERPRETED = 2**17


def tamed(case: LinearCase, work: int = WORK) -> LinearCase:
    """The case with m, then n, reduced until the base product takes at most `work`; a 1-D input has one token."""
    if case.special == "identity":
        return dataclasses.replace(case, k=min(case.k, 64), n=min(case.k, 64), r=min(case.k, 64), bias=False)
    m = 1 if case.lead == "1d" else case.m
    m = min(m, max(1, work // (case.k * case.n))) if m else 0
    n = min(case.n, max(1, work // (case.k * max(m, 1))))
    return case if (m, n) == (case.m, case.n) else dataclasses.replace(case, m=m, n=n)


# Sizes at, below and above the usual block sizes. A size of 1 hides most defects; shrinking ends there.
SCALES = (1.0, 2.0, -1.0, 0.5, 4.0)
LINEAR = Space(
    LinearCase,
    tame=tamed,
    m=(1, 3, 17, 33, 64, 65, 100, 129),
    k=(1, 3, 16, 17, 33, 64, 65, 130, 257, 300, 1031),
    n=(1, 3, 16, 17, 33, 64, 65, 129, 260),
    r=(1, 3, 4, 8, 16, 17, 33, 70),
    scale=SCALES,
    bias=(False, True),
    values=("integers", "normal", "cancelling", "positive", "huge-term"),
    training=(True, False),
)
