"""Stored fields as files hold them, read through `PackedWeight`: GPTQ, AWQ, HQQ, and every option of the formats."""

from __future__ import annotations

from typing import Any

import torch

from conformance.clauses.quantised.case import PACKABLE, STORED, StoredCase
from conformance.clauses.quantised.decoded_weight import Stored
from conformance.clauses.quantised.formats import expected_numbers
from conformance.clauses.quantised.forward import LAYERS
from conformance.clauses.quantised.stored_fields import stored_weight
from conformance.judgement.judge import judge
from conformance.judgement.recording import note
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject

NEEDS = ("PackedWeight",)
ALONE = STORED.narrowed(m=(1,), r=(1,), scale=(1.0,), bias=(False,))


def packed_weight(subject: Subject, stored: Stored) -> Any:
    """The target's `PackedWeight` of stored fields."""
    note(options={})
    fields = {name: field.to(subject.device) for name, field in stored.fields.items()}
    with calling(f"PackedWeight({stored.format!r}, {stored.shape}, fields, {dict(stored.options)})"):
        return subject.target.PackedWeight(stored.format, stored.shape, fields, dict(stored.options))


def judged(subject: Subject, case: StoredCase) -> float | None:
    """Judge what the target reads from stored fields."""
    stored = stored_weight(case)
    weight = packed_weight(subject, stored)
    with calling("dequantize(torch.float32)"):
        got = weight.dequantize(torch.float32)
    return judge(got, expected_numbers(stored))


@clause(
    "QNT-READ-GPTQ",
    sentence="""GPTQ: Ŵ[n, k] = s[g, n]·(q - z[g, n]) for the group g = g_idx[k], with k = 8·row + i at bits 4i of
    qweight and n = 8·column + i at bits 4i of qzeros; version 1 stores z - 1. Groups may have columns in any order.""",
    cases=ALONE.narrowed(format=("gptq",)),
    dtypes=("float32",),
    subjects=LAYERS,
    needs=NEEDS,
)
def test_gptq(subject: Subject, case: StoredCase) -> float | None:
    return judged(subject, case)


@clause(
    "QNT-READ-AWQ",
    sentence="""AWQ: Ŵ[n, k] = s[g, n]·(q - z[g, n]) for the group g of column k, where the eight codes of a word of
    qweight and qzeros belong to the outputs n = 8·column + (0, 2, 4, 6, 1, 3, 5, 7), and z is stored as it is.""",
    cases=ALONE.narrowed(format=("awq",), grouping=("standard", "wide")),
    dtypes=("float32",),
    subjects=LAYERS,
    needs=NEEDS,
)
def test_awq(subject: Subject, case: StoredCase) -> float | None:
    return judged(subject, case)


@clause(
    "QNT-READ-HQQ",
    sentence="""HQQ: Ŵ = (q - zero)·scale with a floating point zero for each group, a row of the weight as [N·K/g, g]
    with axis 1 and a column of [g, N·K/g] with axis 0; the first half of the rows is in the high bits.""",
    cases=ALONE.narrowed(format=("hqq",)),
    dtypes=("float32", "float16"),
    subjects=LAYERS,
    needs=NEEDS,
    feature="format_hqq",
)
def test_hqq(subject: Subject, case: StoredCase) -> float | None:
    return judged(subject, case)


@clause(
    "QNT-READ-OPTIONS",
    sentence="""The formats that are packed here are also read from stored fields, with every option: any codes, zero
    points, nested scales, and blocks whose size is given and not guessed from the shapes.""",
    cases=ALONE.narrowed(format=PACKABLE, n=(16, 5, 64), sizes=("free", "k=n")),
    dtypes=("float32", "bfloat16"),
    subjects=LAYERS,
    needs=NEEDS,
)
def test_every_option(subject: Subject, case: StoredCase) -> float | None:
    return judged(subject, case)
