"""The case of one adapted layer on a packed base, and the case spaces of the group."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from conformance.cases.case import Space
from conformance.cases.linear_case import LinearCase
from conformance.cases.linear_case import tamed as within_work
from conformance.cases.memory_layout import LAYOUTS
from conformance.numerics.dtypes import ADAPTER_DTYPES

PACKABLE = ("nf4", "int8_torchao", "fp8", "int4", "int8_bitsandbytes", "fp4")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class PackedCase(LinearCase):
    """One adapted layer whose weight [n, k] is packed; the other fields are those of a LinearCase.

    Fields:
        format: the name of the format.
        grouping: the elements of one scale, `standard` (nf4 and fp4: 64 in a row; fp8: a row; int4: 32 columns, or 16
            or 8 of a row that these divide), `wide` (128; the whole weight; a row), `special` (nested scales; a grid
            of 2 × 2; zero points and 8 columns). The int8 formats have a scale for each row.
        content: the numbers to pack: `spread` (the largest magnitudes of neighbouring blocks are 8-fold apart),
            `zeros` (the same with a zero block in every three), `codes` (every code of the format occurs).
        compute: the compute dtype; `none` if it is not given.
        update: `small` for an update of a thousandth of the base, beside which the base's rounding shows.
    """

    format: str = "nf4"
    grouping: str = "standard"
    content: str = "spread"
    compute: str = "none"
    update: str = "whole"

    @property
    def group(self) -> int:
        """The columns of one scale of int4."""
        if self.grouping == "wide":
            return self.k
        return 8 if self.grouping == "special" else next(size for size in (32, 16, 8) if self.k % size == 0)

    @property
    def blocks(self) -> tuple[int, int]:
        """The rows and columns of the elements that have one scale; (0, size) for a run of the flattened weight."""
        if self.format in ("nf4", "fp4"):
            return 0, 128 if self.grouping == "wide" else 64
        if self.format in ("int4", "hqq"):
            return 1, self.group if self.format == "int4" else min(self.k, 64)
        if self.format == "fp8" and self.grouping != "standard":
            return (self.n, self.k) if self.grouping == "wide" else (self.n // 2, self.k // 2)
        return 1, self.k

    @property
    def options(self) -> dict[str, Any]:
        """The format's options in a call of `packed_linear`; those with default values are left out."""
        special = self.grouping == "special"
        if self.format in ("nf4", "fp4"):
            wide = {"block_size": 128} if self.grouping == "wide" else {}
            return wide | ({"nested": True} if special else {})
        if self.format == "fp8":
            return {} if self.grouping == "standard" else {"block_size": self.blocks}
        if self.format == "int4":
            return {"group_size": self.group} | ({"zero": True} if special else {})
        return {}


def tamed(case: PackedCase) -> PackedCase:
    """The case within bounds of work, with sizes that its format can divide."""
    if case.lead == "1d":  # of an operand without leading dimensions nothing repeats
        one = {name: "packed" for name in ("x", "g") if getattr(case, name) == "expanded"}
        case = dataclasses.replace(case, **one)  # type: ignore[arg-type]
    found = within_work(case)
    assert isinstance(found, PackedCase)
    k, n = found.k, found.n
    if found.format == "int4":
        k = 8 * math.ceil(k / 8)
    elif found.format == "hqq":
        k, n = 64 * math.ceil(k / 64), n + n % 2
    elif found.format == "fp8" and found.grouping == "special":
        k, n = k + k % 2, n + n % 2
    if found.special == "identity":  # square, of full rank
        return dataclasses.replace(found, k=max(k, n), n=max(k, n), r=max(k, n))
    return found if (k, n) == (found.k, found.n) else dataclasses.replace(found, k=k, n=n)


LAYER = Space(
    PackedCase,
    tame=tamed,
    m=(5, 1, 9, 17, 33),
    k=(32, 33, 17, 64, 70, 130),
    n=(16, 17, 5, 35, 64, 67),
    r=(3, 1, 4, 8),
    scale=(2.0, 1.0, 0.5),
    bias=(False, True),
    values=("normal", "positive", "huge-term"),
    format=PACKABLE,
    grouping=("standard", "wide", "special"),
    content=("spread", "zeros", "codes"),
    compute=("none", "float32"),
)
SMALL = LAYER.narrowed(m=(5, 3, 9), k=(32, 17, 33), n=(16, 5, 35), r=(3, 1), values=("normal",))

LAYOUT = SMALL.narrowed(m=(5, 0, 3, 9, 1), x=LAYOUTS, g=LAYOUTS, lead=("2d", "1d", "3d", "4d"))


def partnered(case: PackedCase) -> PackedCase:
    """The case with an adapter of another dtype, the one that commonly accompanies the case's own."""
    return dataclasses.replace(tamed(case), adapter=ADAPTER_DTYPES[case.dtype])


MIXED = Space(PackedCase, tame=partnered, **SMALL.values)


READ = (*PACKABLE, "gptq", "awq", "hqq")
EIGHTS = ("gptq", "awq", "hqq", "int4")  # their groups, or the codes of a word, divide sizes that are multiples of 8


@dataclass(frozen=True)
class StoredCase(PackedCase):
    """A weight that is read from fields which the suite makes, in formats that only their libraries pack too.

    Fields:
        grouping: of gptq, awq and hqq: groups of 8 columns, `wide` a row; `special` is version 2 of gptq, and axis 0 of
            hqq.
    """

    @property
    def group(self) -> int:
        """The columns of one scale."""
        return self.k if self.grouping == "wide" else 8

    @property
    def options(self) -> dict[str, Any]:
        """The format's options."""
        if self.format not in EIGHTS:
            return super().options
        special = self.grouping == "special"
        of_format: dict[str, dict[str, Any]] = {
            "int4": {"zero": special},
            "gptq": {"version": 2 if special else 1},
            "awq": {},
            "hqq": {"axis": 0 if special else 1},
        }
        return {"group_size": self.group, **of_format[self.format]}


def tamed_stored(case: StoredCase) -> StoredCase:
    """The case with sizes that its format can divide."""
    found = tamed(case)
    assert isinstance(found, StoredCase)
    k, n = found.k, found.n
    if found.format in EIGHTS:
        k, n = 8 * math.ceil(k / 8), 8 * math.ceil(n / 8)
    return found if (k, n) == (found.k, found.n) else dataclasses.replace(found, k=k, n=n)


STORED = Space(
    StoredCase,
    tame=tamed_stored,
    **SMALL.narrowed(
        k=(32, 17, 64, 70, 130),
        n=(16, 5, 35, 64),
        format=READ,
        content=("spread",),
        compute=("none",),
    ).values,
)
