"""Known-bad twins of stored formats: zero points, orders of codes and groups that files have and readers miss."""

from __future__ import annotations

from typing import Any

import torch

import reference
from tests.baselines.quantised import RightPacked
from tests.known_bad import breaks

SINGLE: dict[str, Any] = {"says": "worst    Ŵ", "dtypes": ("float32",)}


class Reads(RightPacked):
    """A target that reads fields in its own way."""

    def changed(self, name, shape, fields, options):
        """Fields and options that are read instead, in that order."""
        return fields, options

    @property
    def PackedWeight(self) -> Any:
        def read(name, shape, fields, options):
            fields, options = self.changed(name, shape, dict(fields), dict(options))
            return reference.PackedWeight(name, shape, fields, options)

        return read


@breaks("QNT-READ-GPTQ", source="vllm-project/vllm #38966, GPTQModel #2350: the stored zero taken as it is", **SINGLE)
class TakesTheZerosOfVersion2(Reads):
    def changed(self, name, shape, fields, options):
        return fields, options | ({"version": 2} if name == "gptq" else {})


@breaks("QNT-READ-GPTQ", source="one added to the zeros of version 2", **SINGLE)
class TakesTheZerosOfVersion1(Reads):
    def changed(self, name, shape, fields, options):
        return fields, options | ({"version": 1} if name == "gptq" else {})


@breaks("QNT-READ-GPTQ", source="groups of neighbouring columns, without g_idx", **SINGLE)
class IgnoresTheOrderOfColumns(Reads):
    def changed(self, name, shape, fields, options):
        if name == "gptq":
            fields["g_idx"] = fields["g_idx"].sort()[0]
        return fields, options


def reversed_codes(words):
    """Words whose eight codes are in the opposite order."""
    wide = words.long() & 0xFFFFFFFF
    found = sum((wide >> 4 * i & 15) << 4 * (7 - i) for i in range(8))
    return torch.where(found >= 2**31, found - 2**32, found).int()


@breaks("QNT-READ-GPTQ", source="codes from the highest bits down", **SINGLE)
class ReadsWordsFromTheTop(Reads):
    def changed(self, name, shape, fields, options):
        if name == "gptq":
            fields["qweight"] = reversed_codes(fields["qweight"])
        return fields, options


def plain_order(words):
    """Words whose codes AWQ's order reads as if they had been in plain order."""
    wide = words.long() & 0xFFFFFFFF
    found = sum((wide >> 4 * n & 15) << 4 * i for i, n in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))
    return torch.where(found >= 2**31, found - 2**32, found).int()


@breaks("QNT-READ-AWQ", source="codes in plain order", **SINGLE)
class ReadsAwqInPlainOrder(Reads):
    def changed(self, name, shape, fields, options):
        if name == "awq":
            fields["qweight"], fields["qzeros"] = plain_order(fields["qweight"]), plain_order(fields["qzeros"])
        return fields, options


@breaks("QNT-READ-AWQ", source="zeros in plain order", **SINGLE)
class ReadsTheZerosOfAwqInPlainOrder(Reads):
    def changed(self, name, shape, fields, options):
        if name == "awq":
            fields["qzeros"] = plain_order(fields["qzeros"])
        return fields, options


class AddsOne:
    """A packed weight of AWQ to whose zeros one is added, as for GPTQ."""

    def __init__(self, weight):
        self.weight = weight

    def dequantize(self, dtype):
        scales = self.weight.fields["scales"].float().t().repeat_interleave(self.weight.options["group_size"], 1)
        return (self.weight.dequantize(torch.float32) - scales).to(dtype)


@breaks("QNT-READ-AWQ", source="one added to zeros that are stored as they are", **SINGLE)
class AddsOneToTheZerosOfAwq(Reads):
    @property
    def PackedWeight(self) -> Any:
        def read(name, *rest):
            weight = reference.PackedWeight(name, *rest)
            return AddsOne(weight) if name == "awq" else weight

        return read


@breaks(
    "QNT-READ-HQQ", says="as if the two codes of a byte were exchanged", source="the first half of rows in low bits"
)
class ReadsTheLowHalfFirst(Reads):
    def changed(self, name, shape, fields, options):
        if name == "hqq":
            fields["codes"] = fields["codes"] << 4 | fields["codes"] >> 4
        return fields, options


@breaks("QNT-READ-HQQ", source="zero points rounded to whole numbers", **SINGLE)
class RoundsTheZeros(Reads):
    def changed(self, name, shape, fields, options):
        if name == "hqq":
            fields["zero"] = fields["zero"].round()
        return fields, options


@breaks("QNT-READ-OPTIONS", says="as if the zero point had been left out", source="symmetric codes taken for granted")
class IgnoresZeroPoints(Reads):
    def changed(self, name, shape, fields, options):
        if name == "int4" and "zero" in fields:
            fields["zero"] = torch.zeros_like(fields["zero"])
        return fields, options


@breaks("QNT-READ-OPTIONS", says="worst    Ŵ", source="a block size guessed from the shapes of codes and scales")
class GuessesTheGridOfASquareWeight(Reads):
    def changed(self, name, shape, fields, options):
        if name == "fp8" and fields["scale"].shape == (2, 2):
            fields["scale"] = fields["scale"].T.contiguous()
        return fields, options


@breaks("QNT-READ-OPTIONS", says="as if the offset of the scales had been left out", source="scales around zero")
class IgnoresTheOffset(Reads):
    def changed(self, name, shape, fields, options):
        if "offset" in fields:
            fields["offset"] = torch.zeros_like(fields["offset"])
        return fields, options
