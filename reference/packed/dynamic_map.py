"""Scales of blocks that are stored in 8 bits themselves: "nested" or "double" quantisation."""

import math

import torch
from torch import Tensor

from .format import Fields, Layout, blocks

BLOCK = 256


def dynamic_map() -> Tensor:
    """The 256 values D of an 8-bit code, ascending, float32.

    For i = 0 … 6: ±10^(i-6) times the means of 2^i equal intervals of [0.1, 1]; and 0 and 1.

    Source: Dettmers, 8-Bit Approximations for Parallelism in Deep Learning (2015); bitsandbytes 0.50.2,
        `create_dynamic_map`.
    """
    values = [0.0, 1.0]
    for i in range(7):
        ends = torch.linspace(0.1, 1.0, 2**i + 1, dtype=torch.float32)
        means = ((ends[:-1] + ends[1:]) / 2 * 10.0 ** (i - 6)).tolist()
        values += [*means, *(-mean for mean in means)]
    return torch.tensor(sorted(values), dtype=torch.float32)


def pack_absmax(absmax: Tensor) -> dict[str, Tensor]:
    """The scales of blocks [B], float32, as codes of D: ``absmax ≈ D[q]·absmax2 + offset``.

    Returns:
        absmax_codes uint8 [B], absmax2 float32 [B/256, rounded up], offset float32 []: the mean of absmax.
    """
    offset = absmax.mean()
    rows = blocks(absmax - offset, BLOCK)
    absmax2 = rows.abs().amax(1)
    D = dynamic_map()
    scaled = torch.where(absmax2[:, None] > 0, rows * (1 / absmax2)[:, None], 0.0)
    codes = torch.bucketize(scaled, (D[:-1] + D[1:]) / 2).flatten()[: absmax.numel()]
    return {"absmax_codes": codes.to(torch.uint8), "absmax2": absmax2, "offset": offset}


def decode_absmax(fields: Fields) -> Tensor:
    """``D[q]·absmax2 + offset`` [B], float32."""
    codes = fields["absmax_codes"]
    absmax2 = fields["absmax2"].repeat_interleave(BLOCK)[: codes.numel()]
    return dynamic_map().to(codes.device)[codes.int()] * absmax2 + fields["offset"]


def absmax_layout(count: int) -> Layout:
    """The fields of `pack_absmax` for B = count blocks."""
    return {
        "absmax_codes": ((count,), (torch.uint8,)),
        "absmax2": ((math.ceil(count / BLOCK),), (torch.float32,)),
        "offset": ((), (torch.float32,)),
    }
