"""GPTQ and AWQ: eight 4-bit codes in an int32, with a scale and a zero point for each group of columns; only read.

Both compute ``Ŵ[n, k] = s[g, n]·(q[k, n] - z[g, n])`` for the group g of column k.

- GPTQ: qweight int32 [K/8, N], column ``k = 8·row + i`` at bits 4i; qzeros int32 [G, N/8], ``n = 8·column + i`` at bits
  4i; g_idx int32 [K] is the group of each column. Version 1 of the format stores z - 1.
- AWQ: qweight int32 [K, N/8] and qzeros int32 [G, N/8]; nibble i holds ``n = 8·column + (0,2,4,6,1,3,5,7)[i]``; g is
  ``k // group_size``.

Source: Frantar et al., GPTQ (2022), files of GPTQModel; Lin et al., AWQ (2023), files of AutoAWQ.
"""

import torch
from torch import Tensor

from .format import FLOATING, Fields, Format, Layout, Options, Shape, divided, whole_number

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def nibbles(packed: Tensor) -> Tensor:
    """The eight 4-bit numbers of each int32, lowest bits first: [..., 8]."""
    return packed[..., None] >> torch.arange(0, 32, 4, device=packed.device, dtype=torch.int32) & 15


def _decode_gptq(fields: Fields, shape: Shape, options: Options) -> Tensor:
    n, k = shape
    q = nibbles(fields["qweight"]).permute(0, 2, 1).reshape(k, n)  # rows 8·row + i
    zeros = nibbles(fields["qzeros"]).flatten(1) + (1 if options["version"] == 1 else 0)
    group = fields["g_idx"].long()
    return (fields["scales"].float()[group] * (q - zeros[group]).float()).t().contiguous()


def _layout_gptq(shape: Shape, options: Options) -> Layout:
    n, k = shape
    groups = divided(k, whole_number("group_size", options["group_size"]), "K", "group_size")
    if options["version"] not in {1, 2}:
        raise ValueError(f"version is {options['version']!r}: expected 1 or 2")
    return {
        "qweight": ((divided(k, 8, "K", "the codes of an int32"), n), (torch.int32,)),
        "qzeros": ((groups, divided(n, 8, "N", "the codes of an int32")), (torch.int32,)),
        "scales": ((groups, n), FLOATING),
        "g_idx": ((k,), (torch.int32,)),
    }


def _decode_awq(fields: Fields, shape: Shape, options: Options) -> Tensor:
    order = torch.tensor(AWQ_ORDER, device=fields["qweight"].device)
    inverse = order.argsort()
    q, zeros = (nibbles(fields[name])[..., inverse].flatten(1) for name in ("qweight", "qzeros"))
    group = torch.arange(shape[1], device=q.device) // options["group_size"]
    return (fields["scales"].float()[group] * (q - zeros[group]).float()).t().contiguous()


def _layout_awq(shape: Shape, options: Options) -> Layout:
    n, k = shape
    groups = divided(k, whole_number("group_size", options["group_size"]), "K", "group_size")
    packed = divided(n, 8, "N", "the codes of an int32")
    return {
        "qweight": ((k, packed), (torch.int32,)),
        "qzeros": ((groups, packed), (torch.int32,)),
        "scales": ((groups, n), FLOATING),
    }


GPTQ = Format("gptq", _decode_gptq, _layout_gptq, None, {"group_size": 128, "version": 1})
AWQ = Format("awq", _decode_awq, _layout_awq, None, {"group_size": 128})
