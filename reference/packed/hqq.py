"""HQQ: 4-bit codes with a floating zero point for each group, ``Ŵ = (q - zero)·scale``; only read.

With axis 1 the weight is [NK/g, g] and a group is a row of it; with axis 0 it is [g, NK/g] and a group is a column.
The first half of the rows is in the high four bits of the bytes, the second half in the low ones.

Source: Badri and Shaji, Half-Quadratic Quantization (2023); hqq 0.2.8, `BitPack.pack_4bit_u8`.
"""

import math

import torch
from torch import Tensor

from .format import FLOATING, Fields, Format, Layout, Options, Shape, divided, whole_number


def _decode(fields: Fields, shape: Shape, options: Options) -> Tensor:  # noqa: ARG001
    packed = fields["codes"]
    q = torch.cat([packed >> 4, packed & 15]).float()
    return ((q - fields["zero"].float()) * fields["scale"].float()).reshape(shape)


def _layout(shape: Shape, options: Options) -> Layout:
    size = whole_number("group_size", options["group_size"])
    count = divided(math.prod(shape), size, "N·K", "group_size")
    if options["axis"] not in {0, 1}:
        raise ValueError(f"axis is {options['axis']!r}: expected 0 or 1")
    rows, columns = (count, size) if options["axis"] == 1 else (size, count)
    scales = (count, 1) if options["axis"] == 1 else (1, count)
    half = divided(rows, 2, "the number of rows", "the codes of a byte")
    return {"codes": ((half, columns), (torch.uint8,)), "scale": (scales, FLOATING), "zero": (scales, FLOATING)}


HQQ = Format("hqq", _decode, _layout, None, {"group_size": 64, "axis": 1})
