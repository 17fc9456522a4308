"""nf4 and fp4: four-bit codes of a table, with a scale for each block of the flattened weight.

Element ``i = n·K + k`` belongs to block ``i // block_size``. A byte holds two codes: the even element in its high four
bits, the odd element in its low four bits. ``Ŵ[i] = T[q[i]]·absmax[i // block_size]``, in float32.

Source: Dettmers et al., QLoRA (2023), appendix E; bitsandbytes 0.50.2, `quantize_4bit`.
"""

import math

import torch
from torch import Tensor

from .dynamic_map import absmax_layout, decode_absmax, pack_absmax
from .format import Fields, Format, Layout, Options, Shape, blocks, whole_number

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of the normal distribution, scaled to [-1, 1]: 9 from 0.9677083 to 0.5 and 8, shared ends dropped."""

_POSITIVE_FP4 = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
FP4 = (*_POSITIVE_FP4, *(-value for value in _POSITIVE_FP4))
"""A sign, two bits of exponent and one of mantissa, by the bits of the code."""

DEFAULTS = {"block_size": 64, "nested": False}


def _format(name: str, values: tuple[float, ...]) -> Format:
    def decode(fields: Fields, shape: Shape, options: Options) -> Tensor:
        codes = fields["codes"].flatten()
        q = torch.stack([codes >> 4, codes & 15], -1).flatten()[: math.prod(shape)].int()
        absmax = decode_absmax(fields) if options["nested"] else fields["absmax"]
        scales = absmax.repeat_interleave(options["block_size"])[: math.prod(shape)]
        return (torch.tensor(values, device=codes.device)[q] * scales).view(shape)

    def pack(weight: Tensor, options: Options, dtype: torch.dtype) -> dict[str, Tensor]:  # noqa: ARG001
        rows = blocks(weight, options["block_size"])
        absmax = rows.abs().amax(1)
        scaled = torch.where(absmax[:, None] > 0, rows * (1 / absmax)[:, None], 0.0)
        q = _nearest(scaled, values).flatten()[: weight.numel()].to(torch.uint8)
        q = torch.nn.functional.pad(q, (0, q.numel() % 2))
        codes = (q[::2] << 4 | q[1::2])[:, None]
        return {"codes": codes, **(pack_absmax(absmax) if options["nested"] else {"absmax": absmax})}

    return Format(name, decode, layout, pack, DEFAULTS)


def layout(shape: Shape, options: Options) -> Layout:
    """codes uint8 [NK/2, 1], rounded up, and absmax float32 [B], or the fields of `pack_absmax`."""
    size = math.prod(shape)
    count = math.ceil(size / whole_number("block_size", options["block_size"]))
    if not isinstance(options["nested"], bool):
        raise ValueError(f"nested is {options['nested']!r}: expected True or False")
    scales: Layout = absmax_layout(count) if options["nested"] else {"absmax": ((count,), (torch.float32,))}
    return {"codes": ((math.ceil(size / 2), 1), (torch.uint8,)), **scales}


def _nearest(scaled: Tensor, values: tuple[float, ...]) -> Tensor:
    """The code of the nearest value of a table; a number midway between two takes the lower value."""
    code_of = {value: code for code, value in reversed(list(enumerate(values)))}  # of the two zeros of fp4 the first
    ascending = sorted(code_of)
    codes, table = torch.tensor([code_of[value] for value in ascending]), torch.tensor(ascending)
    return codes[torch.bucketize(scaled, (table[:-1] + table[1:]) / 2)]


NF4_FORMAT = _format("nf4", NF4)
FP4_FORMAT = _format("fp4", FP4)
