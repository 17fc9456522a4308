"""Packing: each number becomes the nearest that the format has for its block, with the scale that the format states."""

from __future__ import annotations

import numpy as np
import torch

from conformance.clauses.quantised.case import DTYPES, PACKABLE, PackedCase
from conformance.clauses.quantised.decoded_weight import FP4, NESTED, NF4, OF_127, Single
from conformance.clauses.quantised.formats import FORMAT
from conformance.clauses.quantised.forward import LAYERS
from conformance.clauses.quantised.packed_operands import PackedOperands, dequantized, operands_of, unchecked_base
from conformance.clauses.quantised.packed_values import Numbers, blocks_of
from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import Array, dtype_named, format_of, numbers
from conformance.specification.clause import clause
from conformance.target.subject import Subject

PACK = FORMAT.narrowed(format=PACKABLE, grouping=("standard", "wide", "special"))
# half the widest gap between neighbouring values of a table, of the largest magnitude of a block
HALF_GAP = {
    "nf4": 0.1519037,
    "fp4": 1 / 6,
    "int8_torchao": 0.5 / 127.5,
    "int8_bitsandbytes": 0.5 / 127,
    "int4": 0.5 / 7.5,
}
HALF_GAP_OF_SCALES = 0.9 / 64 / 2  # that of the 8-bit map of nested scales, of absmax2


@clause(
    "QNT-PACK",
    sentence="""Packing moves no number by more than its format must: of the largest magnitude of the block nf4 moves it
    by .1519, fp4 by 1/6, int8 and int4 by half a step, fp8 by 2⁻⁴ of itself or half the smallest step. With nested
    scales the error of the scale comes to it.""",
    cases=PACK,
    dtypes=DTYPES,
    subjects=LAYERS,
)
def test_packing_error(subject: Subject, case: PackedCase) -> float | None:
    operands, got = _packed(subject, case)
    weight = numbers(operands.linear.weight)
    if operands.case.format == "hqq":
        return None  # its library searches for scales and zero points, and states no bound
    allowed = packing_bound(operands.case, weight)
    judge(got, Expected("Ŵ beside W", weight, allowed, torch.float32, certified=False))
    return None  # the bound is attained, so its ratio says nothing of errors


@clause(
    "QNT-PACK-BITS",
    sentence="""Packing gives the codes and scales of the library that has the format: the nearest code of
    w·(1/absmax), of two equally near ones the lower in nf4 and fp4 and the even one otherwise; Ŵ shows them bit for
    bit.""",
    cases=PACK.narrowed(grouping=("standard", "wide")),
    level="SHOULD",
    dtypes=("float32", "bfloat16"),
    subjects=LAYERS,
    needs=("packed_fields",),
)
def test_packed_bits(subject: Subject, case: PackedCase) -> float | None:
    operands, got = _packed(subject, case)
    if operands.case.format == "hqq":
        return None
    value = nearest(operands.case, numbers(operands.linear.weight).astype(np.float32)).astype(np.float64)
    return judge(got, Expected("Ŵ", value, None, torch.float32))


def _packed(subject: Subject, case: PackedCase) -> tuple[PackedOperands, torch.Tensor]:
    operands = operands_of(subject, case)
    base = unchecked_base(subject, operands)
    return operands, dequantized(subject.target, base, (operands.case.n, operands.case.k))


def largest_of(weight: Array, number: Numbers) -> Array:
    """The largest magnitude of each element's block [N, K]."""
    of_block = np.zeros(int(number.max()) + 1)
    np.maximum.at(of_block, number.reshape(-1), np.abs(weight).reshape(-1))
    return of_block[number]


def packing_bound(case: PackedCase, weight: Array) -> Array:
    """How far each number may move, with a unit in the last place of the block's largest, in the scale's dtype."""
    number, _ = blocks_of(case)
    largest = largest_of(weight, number)
    unit = format_of(dtype_named(case.dtype) if case.format == "int4" else torch.float32).unit
    rounding = 2 * unit * largest
    if case.format == "int8_bitsandbytes":  # W is rounded to float16 before
        rounding = rounding + 2.0**-11 * np.abs(weight) + 2.0**-25
    if case.format == "fp8":
        return np.maximum(2.0**-4 * np.abs(weight), 2.0**-10 * largest / 448) + rounding
    allowed = HALF_GAP[case.format] * largest + rounding
    if case.grouping == "special" and case.format in ("nf4", "fp4"):
        allowed = allowed + _of_nested_scales(number, largest)
    return np.asarray(allowed)


def _of_nested_scales(number: Numbers, largest: Array) -> Array:
    """How far a nested scale is from the absmax that it stands for."""
    absmax = np.zeros(int(number.max()) + 1)
    absmax[number.reshape(-1)] = largest.reshape(-1)
    apart = np.abs(absmax - absmax.mean())
    second = np.array([apart[at : at + NESTED].max() for at in range(0, len(apart), NESTED)])
    error = (HALF_GAP_OF_SCALES + 2.0**-20) * second.repeat(NESTED)[: len(absmax)] + 2.0**-22 * absmax.max()
    return np.asarray(error[number])


def nearest(case: PackedCase, weight: Single) -> Single:
    """Ŵ of a weight, by the nearest codes, in the operations of float32 that the libraries use."""
    number, _ = blocks_of(case)
    largest = largest_of(weight.astype(np.float64), number).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ROUNDED[case.format](case, weight, largest)


def _of_table(case: PackedCase, weight: Single, largest: Single) -> Single:
    table = np.sort(np.array(list({float(value) for value in TABLES[case.format]}), dtype=np.float32))
    middles = (table[1:] + table[:-1]) / np.float32(2)
    scaled = np.where(largest > 0, weight * (np.float32(1) / largest), np.float32(0))
    found: Single = table[np.searchsorted(middles, scaled)] * largest
    return found


def _of_half_rows(case: PackedCase, weight: Single, largest: Single) -> Single:  # noqa: ARG001
    half = weight.astype(np.float16).astype(np.float32)
    largest = largest.astype(np.float16).astype(np.float32)
    factor = np.float32(1) / largest * np.float32(127)  # torch divides a number by a tensor so
    scaled = np.where(largest > 0, half * factor, np.float32(0))
    found: Single = np.round(scaled) * largest * OF_127
    return found


def _of_rows(case: PackedCase, weight: Single, largest: Single) -> Single:  # noqa: ARG001
    scale = np.maximum(largest / np.float32(127.5), np.finfo(np.float32).eps)
    found: Single = np.clip(np.round(weight * (np.float32(1) / scale)), -128, 127) * scale
    return found


def _of_eighths(case: PackedCase, weight: Single, largest: Single) -> Single:  # noqa: ARG001
    scale = largest / np.float32(448)
    scaled = np.clip(np.where(scale > 0, weight / scale, np.float32(0)), -448, 448)
    codes = torch.from_numpy(np.ascontiguousarray(scaled)).to(torch.float8_e4m3fn).float().numpy()
    found: Single = codes * scale
    return found


def _of_groups(case: PackedCase, weight: Single, largest: Single) -> Single:
    scale = np.maximum(largest / np.float32(7.5), np.finfo(np.float32).eps)
    scale = torch.from_numpy(scale).to(dtype_named(case.dtype)).float().numpy()
    found: Single = np.clip(np.round(weight * (np.float32(1) / scale)), -8, 7) * scale
    return found


TABLES = {"nf4": NF4, "fp4": FP4}
ROUNDED = {
    "nf4": _of_table,
    "fp4": _of_table,
    "int8_bitsandbytes": _of_half_rows,
    "int8_torchao": _of_rows,
    "fp8": _of_eighths,
    "int4": _of_groups,
}
