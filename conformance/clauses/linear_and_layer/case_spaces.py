"""The case spaces of the clauses on LoRA linears."""

from __future__ import annotations

import dataclasses

from conformance.cases.case import Space
from conformance.cases.linear_case import LINEAR, LONG_SCALE, LinearCase, exact_scale
from conformance.cases.memory_layout import LAYOUTS
from conformance.numerics.dtypes import ADAPTER_DTYPES

SMALL = LINEAR.narrowed(
    m=(2, 3, 17, 33), k=(3, 17, 33, 70, 130), n=(2, 5, 16, 35, 67), r=(1, 3, 4, 17), scale=(1.0, 2.0, -1.0)
)
LAYOUT = SMALL.narrowed(x=LAYOUTS, g=LAYOUTS, w=LAYOUTS[:-1], ab=LAYOUTS[:-1], lead=("2d", "3d", "4d"))
# no r = 1: autograd would sum a gradient of shape [0, K], a mistake an empty batch may cause, to the right [1, K]
LEADING = SMALL.narrowed(m=(2, 0, 3, 17, 1), r=(2, 3, 4, 17), lead=("1d", "3d", "4d", "2d", "3d"))


def partnered(case: LinearCase) -> LinearCase:
    """The case with an adapter of another dtype, the one that commonly accompanies the case's own."""
    return dataclasses.replace(LINEAR.tame(case), adapter=ADAPTER_DTYPES[case.dtype])


def exactly_scaled(case: LinearCase) -> LinearCase:
    """The case with a scale that leaves integers exact."""
    case = LINEAR.tame(case)
    return dataclasses.replace(case, scale=exact_scale(case.scale)) if case.values == "integers" else case


SCALED = Space(
    LinearCase,
    tame=exactly_scaled,
    **SMALL.narrowed(scale=(0.0, 2.0, LONG_SCALE, -3.0, 256.0), values=("integers", "normal", "normal")).values,
)
MIXED = Space(LinearCase, tame=partnered, **SMALL.values)
