"""Formats: the numbers that a storage stands for, to the bit, as `dequantize_weight` gives them in float32."""

from __future__ import annotations

import numpy as np
import torch

from conformance.clauses.quantised.case import PACKABLE, SMALL, PackedCase
from conformance.clauses.quantised.decoded_weight import Stored
from conformance.clauses.quantised.forward import LAYERS
from conformance.clauses.quantised.packed_operands import PackedOperands, dequantized, operands_of, unchecked_base
from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics.formats import Array, numbers
from conformance.specification.clause import clause
from conformance.target.subject import Subject

FORMAT = SMALL.narrowed(
    m=(1,),
    k=(64, 33, 17, 70, 130, 257),
    n=(16, 5, 9, 35),
    r=(1,),
    scale=(1.0,),
    content=("codes", "spread", "zeros"),
    compute=("float32", "none"),
)
NEEDS = ("packed_fields", "dequantize_weight")
PLAIN = ("standard", "wide")


def expected_numbers(stored: Stored, *, exact: bool = False) -> Expected:
    """Ŵ of stored fields: within one unit in the last place of float32, or with `exact` to the bit.

    A nested absmax may be off by a unit in the last place of itself and of its product, where a fused operation rounds
    once.
    """
    value = stored.numbers
    allowed = np.spacing(np.abs(value).astype(np.float32)).astype(np.float64)
    if stored.nested:
        allowed = allowed + stored.fused()
    return Expected("Ŵ", value, None if exact else allowed, torch.float32, mistakes=mistakes(stored))


def mistakes(stored: Stored) -> dict[str, Array]:
    """By its words the weight that a known mistake in reading these fields gives."""
    found = {}
    for name, field in ((name, stored.fields[name]) for name in stored.names):
        if field.dtype == torch.uint8 and name == "codes" and stored.format in ("nf4", "fp4", "hqq"):
            found["the two codes of a byte were exchanged"] = {name: field << 4 | field >> 4}
        if name in ("scale", "scales", "absmax", "absmax2", "absmax_codes"):
            found[f"each block had the {name} of the one before"] = {name: field.flatten().roll(1).view(field.shape)}
        if name in ("scale", "scales", "absmax"):
            found["the scale had been left out"] = {name: torch.ones_like(field)}
        if name == "zero":
            found["the zero point were off by one"] = {name: field + 1}
            found["the zero point had been left out"] = {name: torch.zeros_like(field)}
        if name == "offset":
            found["the offset of the scales had been left out"] = {name: torch.zeros_like(field)}
    return {words: stored.decoded({**stored.fields, **change}) for words, change in found.items()}


def judged(subject: Subject, case: PackedCase) -> float | None:
    """Judge the dequantised weight of a base by its stored fields."""
    operands = operands_of(subject, case)
    base = unchecked_base(subject, operands)
    got = dequantized(subject.target, base, (operands.case.n, operands.case.k))
    assert operands.stored is not None
    require(operands.stored.format == operands.case.format, f"packed_fields says format {operands.stored.format}: "
            f"expected {operands.case.format}")  # fmt: skip
    judge_zeros(operands, got)
    return judge(got, expected_numbers(operands.stored))


def judge_zeros(operands: PackedOperands, got: torch.Tensor) -> None:
    """A block of zeros gives zeros; with nested scales its scale is rounded, and its code is that of zero."""
    zero = numbers(operands.placed["weight"].tensor) == 0
    wrong = zero & (numbers(got) != 0) & (operands.case.content == "zeros")
    require(not wrong.any(), f"{int(wrong.sum())} zeros of W were packed as other numbers, such as "
            f"{numbers(got)[wrong][:1]}: expected 0")  # fmt: skip


@clause(
    "QNT-FMT-NF4",
    sentence="""nf4: element i = n·K + k has the code in the high bits of byte i//2 if i is even, and in the low bits if
    it is odd; Ŵ is the float32 product of its quantile and the absmax of its block, i // block_size, across rows. It is
    within one unit in the last place; zeros are exact.""",
    cases=FORMAT.narrowed(format=("nf4",), grouping=PLAIN),
    dtypes=("float32",),
    subjects=LAYERS,
    needs=NEEDS,
    feature="format_nf4",
    weight=0.67,
)
def test_nf4(subject: Subject, case: PackedCase) -> float | None:
    return judged(subject, case)


@clause(
    "QNT-FMT-FP4",
    sentence="""fp4: stored as nf4, with the table 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4 and the same negated from code
    8. Ŵ is within one unit in the last place; zeros are exact.""",
    cases=FORMAT.narrowed(format=("fp4",), grouping=PLAIN),
    dtypes=("float32",),
    subjects=LAYERS,
    needs=NEEDS,
    feature="format_fp4",
    weight=0.67,
)
def test_fp4(subject: Subject, case: PackedCase) -> float | None:
    return judged(subject, case)


@clause(
    "QNT-FMT-NESTED",
    sentence="""Nested scales: the absmax of a block is D[q]·absmax2 + offset, with an absmax2 for 256 blocks, and one
    offset. Ŵ is within one unit in the last place of the products.""",
    cases=FORMAT.narrowed(
        format=("nf4", "fp4"),
        grouping=("special",),
        k=(257, 130),
        n=(67, 131),
        content=("spread", "codes", "zeros"),
    ),
    dtypes=("float32",),
    subjects=LAYERS,
    needs=NEEDS,
    feature="nested_absmax",
)
def test_nested_scales(subject: Subject, case: PackedCase) -> float | None:
    return judged(subject, case)


@clause(
    "QNT-FMT-INT8-BNB",
    sentence="""int8 of bitsandbytes: Ŵ = q·absmax·(1/127) with the absmax of the row, within one unit in the last
    place; a row of zeros is exact.""",
    cases=FORMAT.narrowed(format=("int8_bitsandbytes",), grouping=("standard",)),
    dtypes=("float32",),
    subjects=LAYERS,
    needs=NEEDS,
    feature="format_int8_bitsandbytes",
    weight=0.67,
)
def test_int8_of_bitsandbytes(subject: Subject, case: PackedCase) -> float | None:
    return judged(subject, case)


@clause(
    "QNT-FMT-INT8-TORCHAO",
    sentence="""int8 of torchao: Ŵ = q·s with the scale s of the row, within one unit in the last place; a row of
    zeros is exact.""",
    cases=FORMAT.narrowed(format=("int8_torchao",), grouping=("standard",)),
    dtypes=("float32",),
    subjects=LAYERS,
    needs=NEEDS,
    feature="format_int8_torchao",
    weight=0.67,
)
def test_int8_of_torchao(subject: Subject, case: PackedCase) -> float | None:
    return judged(subject, case)


@clause(
    "QNT-FMT-FP8",
    sentence="""fp8: Ŵ = q·s with float8_e4m3fn codes and a scale for each block: a row, the whole weight, or a grid of
    2 × 2 blocks. It is within one unit in the last place; zeros are exact.""",
    cases=FORMAT.narrowed(format=("fp8",), grouping=("standard", "wide", "special"), sizes=("free", "k=n")),
    dtypes=("float32",),
    subjects=LAYERS,
    needs=NEEDS,
    feature="format_fp8",
    weight=0.67,
)
def test_fp8(subject: Subject, case: PackedCase) -> float | None:
    return judged(subject, case)


@clause(
    "QNT-FMT-INT4",
    sentence="""int4: Ŵ = (q - z)·s with codes from -8 to 7 and a scale for each group of a row's columns, in the dtype
    of the weight before packing; z is 0 where no zero points are stored. It is within one unit in the last place.""",
    cases=FORMAT.narrowed(format=("int4",), grouping=("standard", "wide", "special")),
    dtypes=("float32",),
    subjects=LAYERS,
    needs=NEEDS,
    feature="format_int4",
    weight=0.67,
)
def test_int4(subject: Subject, case: PackedCase) -> float | None:
    return judged(subject, case)


@clause(
    "QNT-FMT-BITS",
    sentence="""Ŵ in float32 equals the product of table value and scale, rounded once in float32, bit for bit, in every
    format that the target packs.""",
    cases=FORMAT.narrowed(format=PACKABLE, grouping=("standard", "wide", "special")),
    level="SHOULD",
    dtypes=("float32",),
    subjects=LAYERS,
    needs=NEEDS,
)
def test_bits(subject: Subject, case: PackedCase) -> float | None:
    operands = operands_of(subject, case)
    base = unchecked_base(subject, operands)
    got = dequantized(subject.target, base, (operands.case.n, operands.case.k))
    assert operands.stored is not None
    return judge(got, expected_numbers(operands.stored, exact=True))
